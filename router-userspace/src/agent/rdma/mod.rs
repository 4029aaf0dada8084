//! RDMA: what devices count, which pod's queue pairs they serve, and how exact that is.
//!
//! Reading order: [`netlink`] and `sysfs` (what the kernel says), `counters` (what devices count,
//! over time), `attribution` (whose it is), `device` and `port` (one device), [`report`] (how it
//! is shown), `watcher` (the thread).

mod attribution;
mod counters;
mod device;
mod erdma;
pub mod netlink;
mod port;
pub mod report;
mod sysfs;
mod watcher;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attribution::{Arrivals, KvEstimates, Owner, OwnerLookup, ProcessTable};
use counters::ActivityEvidence;
use device::RdmaDevice;
use netlink::{DeviceInfo, NetlinkSource, NldevCommand};
use port::PortContext;
use report::RdmaReport;
use sysfs::Sysfs;

pub use attribution::{ArrivedTraffic, KvRequests, QueuePairEntry};

pub(super) use attribution::IwarpConnections;
pub(super) use watcher::RdmaWatcher;

/// Interval between two searches for devices, ports and links.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two scans of the queue pairs, until [`Rdma::set_scan_interval`] changes it.
const QUEUE_PAIR_SCAN_INTERVAL: Duration = Duration::from_millis(500);

/// Paths of the host's file systems as this process sees them.
#[derive(Clone, Debug)]
pub struct HostPaths {
    pub sysfs: PathBuf,
    pub proc: PathBuf,
    /// The character device of erdma's installer driver.
    pub erdma: PathBuf,
}

impl Default for HostPaths {
    fn default() -> HostPaths {
        HostPaths { sysfs: "/sys".into(), proc: "/proc".into(), erdma: "/dev/erdma".into() }
    }
}

/// A configured link speed in bits per second: of the named device, or of all devices without an
/// entry of their own.
pub type ConfiguredSpeed = (Option<String>, u64);

/// What the rest of the agent observed: evidence that queue pairs are active, and for which pods.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// KV control payload in bytes that each pod has sent and received, by UID.
    pub control: HashMap<Arc<str>, u64>,
    /// KV cache that each decode has requested from its prefills, by UID.
    pub kv_requests: HashMap<Arc<str>, KvRequests>,
    /// RoCEv2 traffic that arrived, by queue pair.
    pub arrivals: Vec<QueuePairEntry>,
}

/// The RDMA devices of this node.
pub struct Rdma {
    source: Box<dyn NetlinkSource>,
    sysfs: Sysfs,
    processes: ProcessTable,
    erdma: erdma::ErdmaDriver,
    speeds: Vec<ConfiguredSpeed>,
    devices: Vec<RdmaDevice>,
    arrivals: Arrivals,
    estimates: KvEstimates,
    last_control: HashMap<Arc<str>, u64>,
    /// Why RDMA netlink failed last.
    netlink_error: Option<String>,
    scan_interval: Duration,
    next_scan: Duration,
    next_discovery: Duration,
}

impl Rdma {
    pub fn new(
        source: Box<dyn NetlinkSource>,
        paths: &HostPaths,
        speeds: Vec<ConfiguredSpeed>,
    ) -> Rdma {
        Rdma {
            source,
            sysfs: Sysfs::new(&paths.sysfs),
            processes: ProcessTable::new(&paths.proc),
            erdma: erdma::ErdmaDriver::new(&paths.erdma),
            speeds,
            devices: Vec::new(),
            arrivals: Arrivals::default(),
            estimates: KvEstimates::default(),
            last_control: HashMap::new(),
            netlink_error: None,
            scan_interval: QUEUE_PAIR_SCAN_INTERVAL,
            next_scan: Duration::ZERO,
            next_discovery: Duration::ZERO,
        }
    }

    /// Sets the interval between two scans of the queue pairs.
    pub fn set_scan_interval(&mut self, interval: Duration) {
        self.scan_interval = interval;
    }

    /// Sets the size of a KV cache page on one rank. It is needed to estimate transfers that no
    /// counter shows.
    pub fn set_page_bytes(&mut self, bytes: Option<u64>) {
        self.estimates = KvEstimates::new(bytes);
    }

    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Reads what is due at `at`, a time of any monotonic clock. Returns whether the queue pairs were
    /// scanned.
    pub fn sample(&mut self, at: Duration, activity: &Activity) -> bool {
        if at >= self.next_discovery {
            self.next_discovery = at + DISCOVERY_INTERVAL;
            self.discover();
        }
        let scans = at >= self.next_scan;
        if scans {
            self.next_scan = at + self.scan_interval;
        }
        let erdma = &mut self.erdma;
        for device in &mut self.devices {
            let (index, is_in_use) = (device.index(), device.is_in_use());
            let context =
                PortContext { device: &device.info.name, index, driver: device.driver, is_in_use };
            for port in device.ports.iter_mut().filter(|port| port.is_due(at)) {
                let mut refresh = |name: &str| erdma.refresh(at, name);
                port.sample(at, context, &mut *self.source, &self.sysfs, &mut refresh);
            }
        }
        if scans {
            let mut owners = OwnerLookup::new(&self.processes);
            for device in &mut self.devices {
                device.scan_queue_pairs(at, &mut *self.source, &mut owners);
            }
            self.observe_control_messages(at, activity);
            self.estimates.record(at, &activity.kv_requests);
            self.arrivals.record(at, &activity.arrivals, &self.devices, &self.sysfs);
        }
        scans
    }

    /// Finds devices that were added, removed or changed.
    fn discover(&mut self) {
        let answer = self.source.ask(NldevCommand::Devices, None, None).map(netlink::devices);
        let (listed, netlink_error) = match answer {
            Ok(listed) => (listed, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        self.netlink_error = netlink_error;
        let others = self.sysfs.devices(|name| listed.iter().all(|device| device.name != name));
        let found: Vec<(DeviceInfo, bool)> = listed
            .into_iter()
            .map(|device| (device, true))
            .chain(others.into_iter().map(|device| (device, false)))
            .collect();
        let is_same = |device: &RdmaDevice, (found, is_in_netlink): &(DeviceInfo, bool)| {
            let known = &device.info;
            let same = device.is_in_netlink == *is_in_netlink && known.index == found.index;
            same && known.name == found.name
        };
        self.devices.retain(|device| found.iter().any(|found| is_same(device, found)));
        for found in found {
            if !self.devices.iter().any(|device| is_same(device, &found)) {
                let (found, is_in_netlink) = found;
                let driver = self.driver(&found, is_in_netlink);
                self.devices.push(RdmaDevice::new(found, is_in_netlink, driver));
            }
        }
        let speeds = &self.speeds;
        let set = |name: &str| {
            let named = speeds.iter().find(|(device, _)| device.as_deref() == Some(name));
            named.or(speeds.iter().find(|(device, _)| device.is_none())).map(|(_, speed)| *speed)
        };
        for device in &mut self.devices {
            device.discover_ports(&mut *self.source, &self.sysfs, &set);
        }
    }

    fn driver(&mut self, device: &DeviceInfo, is_in_netlink: bool) -> &'static str {
        let index = is_in_netlink.then_some(device.index);
        let answer =
            index.and_then(|index| self.source.ask(NldevCommand::Driver, Some(index), None).ok());
        let driver = answer.and_then(netlink::driver);
        driver.or_else(|| self.sysfs.driver(&device.name)).unwrap_or_default()
    }

    /// Takes KV control messages of a pod as evidence of activity on the devices that it uses.
    fn observe_control_messages(&mut self, at: Duration, activity: &Activity) {
        let moved = |uid: &Arc<str>| activity.control.get(uid) > self.last_control.get(uid);
        for device in &mut self.devices {
            let holders = device.holders.iter().flat_map(|holders| holders.iter());
            let mut pods = holders.filter_map(|(owner, states)| match owner {
                Owner::Pod(uid) if states.active() > 0 => Some(uid),
                _ => None,
            });
            if pods.any(moved) {
                device
                    .ports
                    .iter_mut()
                    .for_each(|port| port.staleness.on_activity(at, ActivityEvidence::Likely));
            }
        }
        self.last_control.clone_from(&activity.control);
    }

    /// The report as of `at`.
    pub fn report(&self, at: Duration) -> RdmaReport {
        RdmaReport::new(self, at)
    }
}
