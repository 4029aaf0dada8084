//! RDMA: what devices count, whose queue pairs they serve, and how far that can be trusted.
//!
//! Reading order: [`ask`] and `parse` (what the kernel says), `sysfs` (where it does not), `names`
//! (what counters are called), `meter` and `freshness` (what they say over time), `owner` and
//! `holders` (whose it is), `device` and `port` (all of it together), `report`, `named` and
//! `metrics` and `record` (how it is shown), `estimate` (KV cache by its pages), `taken`
//! (TCP connections that are none), `watcher` (the thread).

pub mod ask;
mod counters;
mod device;
mod erdma;
mod estimate;
mod freshness;
mod holders;
mod meter;
pub(super) mod metrics;
mod named;
mod names;
pub mod nldev;
mod owner;
mod parse;
mod port;
pub(super) mod record;
pub mod report;
mod seen;
mod sysfs;
mod taken;
mod watcher;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ask::Source;
use device::Device;
use estimate::Estimates;
use freshness::Work;
use nldev::Command;
use owner::{Owner, Owners, Processes};
use port::Of;
use report::Report;
use seen::Seen;
use sysfs::Sysfs;

pub use estimate::Asked;
pub use seen::{Arrival, Arrived};

pub(super) use named::{Names, RdmaLoad};
pub(super) use taken::Taken;
pub(super) use watcher::Watcher;

/// Devices, ports and links are looked for this often.
const FIND_EVERY: Duration = Duration::from_secs(1);
/// Queue pairs are looked at this often at first; a watcher sets its own pace.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where this process finds the host.
#[derive(Clone, Debug)]
pub struct Roots {
    pub sysfs: PathBuf,
    pub proc: PathBuf,
    /// The file of erdma's installer driver.
    pub erdma: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { sysfs: "/sys".into(), proc: "/proc".into(), erdma: "/dev/erdma".into() }
    }
}

/// Bits a second that are configured: of one device, or of all that are not named.
pub type Speed = (Option<String>, u64);

/// What the rest of the agent saw, which tells whether queue pairs work and for whom.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// KV control payload that pods, by UID, sent and received so far.
    pub control: HashMap<Arc<str>, u64>,
    /// What decodes, by UID, asked their prefills for.
    pub asked: HashMap<Arc<str>, Asked>,
    /// RoCEv2 that arrived, by queue pair.
    pub arrivals: Vec<Arrival>,
}

/// The devices of this node.
pub struct Rdma {
    source: Box<dyn Source>,
    sysfs: Sysfs,
    processes: Processes,
    erdma: erdma::Driver,
    speeds: Vec<Speed>,
    devices: Vec<Device>,
    seen: Seen,
    estimates: Estimates,
    control: HashMap<Arc<str>, u64>,
    /// Why netlink does not answer.
    refusal: Option<String>,
    look_every: Duration,
    next_look: Duration,
    next_find: Duration,
}

impl Rdma {
    pub fn new(source: Box<dyn Source>, roots: &Roots, speeds: Vec<Speed>) -> Rdma {
        Rdma {
            source,
            sysfs: Sysfs::new(&roots.sysfs),
            processes: Processes::new(&roots.proc),
            erdma: erdma::Driver::new(&roots.erdma),
            speeds,
            devices: Vec::new(),
            seen: Seen::default(),
            estimates: Estimates::default(),
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
        self.estimates = Estimates::new(bytes);
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
            let of = Of { device: &device.found.name, index, driver: device.driver, is_held };
            for port in device.ports.iter_mut().filter(|port| port.is_due(at)) {
                let mut refresh = |name: &str| erdma.refresh(at, name);
                port.sample(at, of, &mut *self.source, &self.sysfs, &mut refresh);
            }
        }
        if looks {
            let mut owners = Owners::new(&self.processes);
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
        let answer = self.source.ask(Command::Devices, None, None).map(parse::devices);
        let (told, refusal) = match answer {
            Ok(told) => (told, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        self.refusal = refusal;
        let others = self.sysfs.devices(|name| told.iter().all(|told| told.name != name));
        let found: Vec<(parse::Device, bool)> = told
            .into_iter()
            .map(|device| (device, true))
            .chain(others.into_iter().map(|device| (device, false)))
            .collect();
        let is_same = |device: &Device, (found, by_netlink): &(parse::Device, bool)| {
            let known = &device.found;
            let same = device.by_netlink == *by_netlink && known.index == found.index;
            same && known.name == found.name
        };
        self.devices.retain(|device| found.iter().any(|found| is_same(device, found)));
        for found in found {
            if !self.devices.iter().any(|device| is_same(device, &found)) {
                let (found, by_netlink) = found;
                let driver = self.driver(&found, by_netlink);
                self.devices.push(Device::new(found, by_netlink, driver));
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

    fn driver(&mut self, device: &parse::Device, by_netlink: bool) -> &'static str {
        let index = by_netlink.then_some(device.index);
        let answer =
            index.and_then(|index| self.source.ask(Command::Driver, Some(index), None).ok());
        let driver = answer.and_then(parse::driver);
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
                device.ports.iter_mut().for_each(|port| port.watch.worked(at, Work::Likely));
            }
        }
        self.control.clone_from(&activity.control);
    }

    /// What is known `at`.
    pub fn report(&self, at: Duration) -> Report {
        Report::new(self, at)
    }
}
