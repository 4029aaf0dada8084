//! How fast the node's links are and how much of them is used, for what a transfer may get.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use router_core::counter_window::CounterWindow;
use router_core::frame::{DeviceKind, DeviceRecord};
use router_core::provenance::Measured;
use tracing::debug;

use super::attach::Device;
use super::link_speed::bytes_per_second;
use super::netlink::Netlink;
use super::rdma::report::PodRdmaRates;
use super::registry::Entry;
use super::settings::LinkSpeed;

/// As the rates of pods: the last moment.
const SPAN: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);

const TX: usize = 0;
const RX: usize = 1;

/// The ways of a pod to others: its interface's, and RDMA past the host.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    pub(super) links: &'a Links,
    pub(super) rdma: HashMap<Arc<str>, PodRdmaRates>,
}

impl Ways<'_> {
    /// What of RDMA is a pod's.
    pub(super) fn rdma(&self, entry: &Entry) -> PodRdmaRates {
        self.rdma.get(&entry.placed.pod.uid).copied().unwrap_or_default()
    }

    /// The link that transfers of a pod take. Those that pass the host by take no other; unknown
    /// is not the interface's.
    pub(super) fn of_pod(&self, entry: &Entry) -> Option<LinkUse> {
        let rdma = self.rdma(entry);
        if rdma.is_offloaded { rdma.link } else { self.links.of_pod(entry.placed.ifindex) }
    }
}

/// A link's speed and use, in bytes a second, from the side of those behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LinkUse {
    pub(super) speed: f64,
    pub(super) tx: f64,
    pub(super) rx: f64,
}

#[derive(Debug)]
struct Watched {
    name: String,
    kind: DeviceKind,
    speed: Option<f64>,
    /// What those behind it sent and received.
    trail: CounterWindow<2>,
    read: Instant,
}

/// The uplinks, and the pods' links whose speed is known.
#[derive(Debug)]
pub(super) struct Links {
    start: Instant,
    watched: BTreeMap<u32, Watched>,
    netlink: Netlink,
}

impl Default for Links {
    fn default() -> Links {
        Links { start: Instant::now(), watched: BTreeMap::new(), netlink: Netlink::default() }
    }
}

impl Links {
    /// Takes up devices that are new, and lets go those that are gone.
    pub(super) fn follow(&mut self, devices: &[Device], told: &[LinkSpeed]) {
        let (start, mut before) = (Instant::now(), std::mem::take(&mut self.watched));
        for device in devices {
            let uplink = device.role == "uplink";
            let told = told.iter().find(|told| told.interface == device.name);
            if !uplink && told.is_none() {
                // A veth moves what its CPU can: there is no speed to compare with.
                continue;
            }
            let watched = before.remove(&device.index).filter(|old| old.name == device.name);
            let watched = watched.unwrap_or_else(|| Watched {
                name: device.name.clone(),
                kind: if uplink { DeviceKind::Uplink } else { DeviceKind::PodLink },
                speed: told
                    .map(|told| told.bytes_per_second())
                    .or_else(|| bytes_per_second(&device.name)),
                trail: CounterWindow::new(SPAN, STEP),
                read: start,
            });
            self.watched.insert(device.index, watched);
        }
    }

    /// Reads what all have moved.
    pub(super) fn read(&mut self) {
        for (index, link) in &mut self.watched {
            let counters = match self.netlink.counters(*index) {
                Ok(Some(counters)) => counters,
                Ok(None) => continue,
                Err(error) => {
                    debug!(interface = link.name, %error, "counters of a link");
                    continue;
                }
            };
            link.read = Instant::now();
            let at = link.read.saturating_duration_since(self.start);
            // The host's end of a pod's link receives what the pod sends.
            let (tx, rx) = match link.kind {
                DeviceKind::PodLink => (counters.rx_bytes, counters.tx_bytes),
                DeviceKind::Uplink | DeviceKind::Rdma => (counters.tx_bytes, counters.rx_bytes),
            };
            link.trail.push(at, [tx, rx]);
        }
    }

    /// The narrowest link between a pod that interface `index` carries and others: its own or an
    /// uplink. `None` where no speed is known.
    pub(super) fn of_pod(&self, index: u32) -> Option<LinkUse> {
        let ways = self
            .watched
            .iter()
            .filter(|(own, link)| **own == index || link.kind == DeviceKind::Uplink);
        let free = |link: &LinkUse| link.speed - link.tx.max(link.rx);
        ways.filter_map(|(_, link)| link.used()).min_by(|a, b| free(a).total_cmp(&free(b)))
    }

    pub(super) fn records(&self, now: Instant) -> Vec<DeviceRecord> {
        let record = |link: &Watched| {
            let used = link.used();
            let rate = |counter| {
                let growth = link.trail.growth();
                Measured::from(growth.map(|growth| growth.per_second(counter) as f32))
            };
            let age = now.saturating_duration_since(link.read);
            DeviceRecord {
                name: link.name.clone(),
                kind: link.kind,
                age_us: u32::try_from(age.as_micros()).unwrap_or(u32::MAX),
                speed_bytes_per_s: link.speed.map(|speed| speed as f32).into(),
                tx_bytes_per_s: rate(TX),
                rx_bytes_per_s: rate(RX),
                utilisation: used
                    .map(|used| (used.tx.max(used.rx) / used.speed).min(1.0) as f32)
                    .into(),
            }
        };
        self.watched.values().map(record).collect()
    }
}

impl Watched {
    fn used(&self) -> Option<LinkUse> {
        let growth = self.trail.growth()?;
        let speed = self.speed.filter(|speed| *speed > 0.0)?;
        Some(LinkUse { speed, tx: growth.per_second(TX), rx: growth.per_second(RX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_way_counts_and_a_link_of_unknown_speed_is_none() {
        let watched = |kind, speed, moved: u64| {
            let mut trail = CounterWindow::new(SPAN, STEP);
            trail.push(Duration::ZERO, [0, 0]);
            trail.push(Duration::from_millis(100), [moved, 0]);
            Watched { name: String::new(), kind, speed, trail, read: Instant::now() }
        };
        let mut links = Links::default();
        links.watched.insert(1, watched(DeviceKind::Uplink, Some(1e9), 1_000_000));
        assert_eq!(links.of_pod(7).map(|link| link.speed), Some(1e9));
        links.watched.insert(7, watched(DeviceKind::PodLink, Some(2e9), 195_000_000));
        let own = links.of_pod(7).expect("a link");
        assert_eq!((own.speed, own.tx), (2e9, 1.95e9));
        assert_eq!(
            links.of_pod(8).map(|link| link.speed),
            Some(1e9),
            "another pod's link is not its own"
        );
        links.watched.insert(1, watched(DeviceKind::Uplink, None, 0));
        assert_eq!(links.of_pod(8), None);
    }
}
