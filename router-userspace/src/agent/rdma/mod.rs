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

/// Devices, ports and links are looked for this often.
const FIND_EVERY: Duration = Duration::from_secs(1);
/// Queue pairs are looked at this often at first; a watcher sets its own pace.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where this process finds the host.
#[derive(Clone, Debug)]
pub struct HostPaths {
    pub sysfs: PathBuf,
    pub proc: PathBuf,
    /// The file of erdma's installer driver.
    pub erdma: PathBuf,
}

impl Default for HostPaths {
    fn default() -> HostPaths {
        HostPaths { sysfs: "/sys".into(), proc: "/proc".into(), erdma: "/dev/erdma".into() }
    }
}

/// Bits a second that are configured: of one device, or of all that are not named.
pub type ConfiguredSpeed = (Option<String>, u64);

/// What the rest of the agent saw, which tells whether queue pairs work and for whom.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// KV control payload that pods, by UID, sent and received so far.
    pub control: HashMap<Arc<str>, u64>,
    /// What decodes, by UID, asked their prefills for.
    pub asked: HashMap<Arc<str>, KvRequests>,
    /// RoCEv2 that arrived, by queue pair.
    pub arrivals: Vec<QueuePairEntry>,
}

/// The devices of this node.
pub struct Rdma {
    source: Box<dyn NetlinkSource>,
    sysfs: Sysfs,
    processes: ProcessTable,
    erdma: erdma::Driver,
    speeds: Vec<ConfiguredSpeed>,
    devices: Vec<RdmaDevice>,
    seen: Arrivals,
    estimates: KvEstimates,
    control: HashMap<Arc<str>, u64>,
    /// Why netlink does not answer.
    refusal: Option<String>,
    look_every: Duration,
    next_look: Duration,
    next_find: Duration,
}

impl Rdma {
    pub fn new(
        source: Box<dyn NetlinkSource>,
        roots: &HostPaths,
        speeds: Vec<ConfiguredSpeed>,
    ) -> Rdma {
        Rdma {
            source,
            sysfs: Sysfs::new(&roots.sysfs),
            processes: ProcessTable::new(&roots.proc),
            erdma: erdma::Driver::new(&roots.erdma),
            speeds,
            devices: Vec::new(),
            seen: Arrivals::default(),
            estimates: KvEstimates::default(),
            control: HashMap::new(),
            refusal: None,
            look_every: LOOK_EVERY,
            next_look: Duration::ZERO,
            next_find: Duration::ZERO,
        }
    }

    /// How often queue pairs are looked at.
    pub fn look_every(&mut self, every: Duration) {
        self.look_every = every;
    }

    /// Bytes of KV cache that one page has on one rank, for estimates where nothing counts.
    pub fn page_bytes(&mut self, bytes: Option<u64>) {
        self.estimates = KvEstimates::new(bytes);
    }

    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Reads what is due `at`, on any clock that goes forward; whether queue pairs were counted.
    pub fn round(&mut self, at: Duration, activity: &Activity) -> bool {
        if at >= self.next_find {
            self.next_find = at + FIND_EVERY;
            self.find();
        }
        let looks = at >= self.next_look;
        if looks {
            self.next_look = at + self.look_every;
        }
        let erdma = &mut self.erdma;
        for device in &mut self.devices {
            let (index, is_held) = (device.index(), device.is_held());
            let of =
                PortContext { device: &device.found.name, index, driver: device.driver, is_held };
            for port in device.ports.iter_mut().filter(|port| port.is_due(at)) {
                let mut refresh = |name: &str| erdma.refresh(at, name);
                port.sample(at, of, &mut *self.source, &self.sysfs, &mut refresh);
            }
        }
        if looks {
            let mut owners = OwnerLookup::new(&self.processes);
            for device in &mut self.devices {
                device.count(at, &mut *self.source, &mut owners);
            }
            self.likely_work(at, activity);
            self.estimates.enter(at, &activity.asked);
            self.seen.enter(at, &activity.arrivals, &self.devices, &self.sysfs);
        }
        looks
    }

    /// Devices that came, went or changed.
    fn find(&mut self) {
        let answer = self.source.ask(NldevCommand::Devices, None, None).map(netlink::devices);
        let (told, refusal) = match answer {
            Ok(told) => (told, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        self.refusal = refusal;
        let others = self.sysfs.devices(|name| told.iter().all(|told| told.name != name));
        let found: Vec<(DeviceInfo, bool)> = told
            .into_iter()
            .map(|device| (device, true))
            .chain(others.into_iter().map(|device| (device, false)))
            .collect();
        let is_same = |device: &RdmaDevice, (found, by_netlink): &(DeviceInfo, bool)| {
            let known = &device.found;
            let same = device.by_netlink == *by_netlink && known.index == found.index;
            same && known.name == found.name
        };
        self.devices.retain(|device| found.iter().any(|found| is_same(device, found)));
        for found in found {
            if !self.devices.iter().any(|device| is_same(device, &found)) {
                let (found, by_netlink) = found;
                let driver = self.driver(&found, by_netlink);
                self.devices.push(RdmaDevice::new(found, by_netlink, driver));
            }
        }
        let speeds = &self.speeds;
        let set = |name: &str| {
            let named = speeds.iter().find(|(device, _)| device.as_deref() == Some(name));
            named.or(speeds.iter().find(|(device, _)| device.is_none())).map(|(_, speed)| *speed)
        };
        for device in &mut self.devices {
            device.look(&mut *self.source, &self.sysfs, &set);
        }
    }

    fn driver(&mut self, device: &DeviceInfo, by_netlink: bool) -> &'static str {
        let index = by_netlink.then_some(device.index);
        let answer =
            index.and_then(|index| self.source.ask(NldevCommand::Driver, Some(index), None).ok());
        let driver = answer.and_then(netlink::driver);
        driver.or_else(|| self.sysfs.driver(&device.name)).unwrap_or_default()
    }

    /// KV control messages of a pod are a sign of work on the devices that it holds.
    fn likely_work(&mut self, at: Duration, activity: &Activity) {
        let moved = |uid: &Arc<str>| activity.control.get(uid) > self.control.get(uid);
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
                    .for_each(|port| port.watch.worked(at, ActivityEvidence::Likely));
            }
        }
        self.control.clone_from(&activity.control);
    }

    /// What is known `at`.
    pub fn report(&self, at: Duration) -> RdmaReport {
        RdmaReport::new(self, at)
    }
}
