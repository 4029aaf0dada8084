//! The speed and use of the node's links, which limit what a transfer can get.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use router_core::counter_window::CounterWindow;
use router_core::frame::{DeviceKind, DeviceRecord};
use router_core::provenance::Measured;
use tracing::debug;

use crate::agent::attachments::AttachedInterface;
use crate::agent::flags::LinkSpeed;
use crate::agent::host::link_speed::bytes_per_second;
use crate::agent::host::link_use::LinkUse;
use crate::agent::host::netlink::Netlink;
use crate::agent::pods::registered_pod::RegisteredPod;
use crate::agent::rdma::report::PodRdmaRates;
use crate::clock::micros;

/// Rates are over the same window as those of pods.
const SPAN: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);

const TX: usize = 0;
const RX: usize = 1;

/// The links of the pods: those of their interfaces, and those of RDMA, which bypasses the host.
#[derive(Debug)]
pub(in crate::agent) struct PodLinks<'a> {
    pub(in crate::agent) links: &'a NodeLinks,
    pub(in crate::agent) rdma: HashMap<Arc<str>, PodRdmaRates>,
}

impl PodLinks<'_> {
    /// The part of the RDMA devices that a pod uses.
    pub(in crate::agent) fn rdma(&self, pod: &RegisteredPod) -> PodRdmaRates {
        self.rdma.get(&pod.placed.pod.uid).copied().unwrap_or_default()
    }

    /// The link that transfers of a pod take. If RDMA bypasses the host it is that of the device, even
    /// if its use is unknown.
    pub(in crate::agent) fn of_pod(&self, pod: &RegisteredPod) -> Option<LinkUse> {
        let rdma = self.rdma(pod);
        if rdma.is_offloaded { rdma.link } else { self.links.of_pod(pod.placed.ifindex) }
    }
}

#[derive(Debug)]
struct MeasuredLink {
    name: String,
    kind: DeviceKind,
    speed: Option<f64>,
    /// Bytes that the pods or nodes behind the link sent and received.
    window: CounterWindow<2>,
    read: Instant,
}

/// The uplinks, and the links of pods whose speed is known.
#[derive(Debug)]
pub(in crate::agent) struct NodeLinks {
    start: Instant,
    measured: BTreeMap<u32, MeasuredLink>,
    netlink: Netlink,
}

impl Default for NodeLinks {
    fn default() -> NodeLinks {
        NodeLinks { start: Instant::now(), measured: BTreeMap::new(), netlink: Netlink::default() }
    }
}

impl NodeLinks {
    /// Adds links of new interfaces, and removes those that are gone. `speeds` overrides what devices
    /// report.
    pub(in crate::agent) fn reconcile(
        &mut self,
        interfaces: &[AttachedInterface],
        speeds: &[LinkSpeed],
    ) {
        let (start, mut before) = (Instant::now(), std::mem::take(&mut self.measured));
        for interface in interfaces {
            let uplink = interface.role == "uplink";
            let configured = speeds.iter().find(|speed| speed.interface == interface.name);
            if !uplink && configured.is_none() {
                // A veth has no speed of its own: it moves what the CPU can.
                continue;
            }
            let measured = before.remove(&interface.index).filter(|old| old.name == interface.name);
            let measured = measured.unwrap_or_else(|| MeasuredLink {
                name: interface.name.clone(),
                kind: if uplink { DeviceKind::Uplink } else { DeviceKind::PodLink },
                speed: configured
                    .map(|speed| speed.bytes_per_second())
                    .or_else(|| bytes_per_second(&interface.name)),
                window: CounterWindow::new(SPAN, STEP),
                read: start,
            });
            self.measured.insert(interface.index, measured);
        }
    }

    /// Reads the byte counters of all links.
    pub(in crate::agent) fn read(&mut self) {
        for (index, link) in &mut self.measured {
            let counters = match self.netlink.counters(*index) {
                Ok(Some(counters)) => counters,
                Ok(None) => continue,
                Err(error) => {
                    debug!(interface = link.name, %error, "cannot read link counters");
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
            link.window.push(at, [tx, rx]);
        }
    }

    /// The link with the least free bandwidth between a pod on interface `index` and other nodes: its
    /// own link or an uplink. `None` if no speed is known.
    pub(in crate::agent) fn of_pod(&self, index: u32) -> Option<LinkUse> {
        let links = self
            .measured
            .iter()
            .filter(|(own, link)| **own == index || link.kind == DeviceKind::Uplink);
        let free = |link: &LinkUse| link.speed - link.tx.max(link.rx);
        links.filter_map(|(_, link)| link.used()).min_by(|a, b| free(a).total_cmp(&free(b)))
    }

    pub(in crate::agent) fn records(&self, now: Instant) -> Vec<DeviceRecord> {
        let record = |link: &MeasuredLink| {
            let used = link.used();
            let rate = |counter| {
                let growth = link.window.growth();
                Measured::from(growth.map(|growth| growth.per_second(counter) as f32))
            };
            let age = now.saturating_duration_since(link.read);
            DeviceRecord {
                name: link.name.clone(),
                kind: link.kind,
                age_us: micros(age),
                speed_bytes_per_s: link.speed.map(|speed| speed as f32).into(),
                tx_bytes_per_s: rate(TX),
                rx_bytes_per_s: rate(RX),
                utilisation: used
                    .map(|used| (used.tx.max(used.rx) / used.speed).min(1.0) as f32)
                    .into(),
            }
        };
        self.measured.values().map(record).collect()
    }
}

impl MeasuredLink {
    fn used(&self) -> Option<LinkUse> {
        let growth = self.window.growth()?;
        let speed = self.speed.filter(|speed| *speed > 0.0)?;
        Some(LinkUse { speed, tx: growth.per_second(TX), rx: growth.per_second(RX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_with_less_free_bandwidth_counts_and_one_of_unknown_speed_does_not() {
        let measured = |kind, speed, moved: u64| {
            let mut window = CounterWindow::new(SPAN, STEP);
            window.push(Duration::ZERO, [0, 0]);
            window.push(Duration::from_millis(100), [moved, 0]);
            MeasuredLink { name: String::new(), kind, speed, window, read: Instant::now() }
        };
        let mut links = NodeLinks::default();
        links.measured.insert(1, measured(DeviceKind::Uplink, Some(1e9), 1_000_000));
        assert_eq!(links.of_pod(7).map(|link| link.speed), Some(1e9));
        links.measured.insert(7, measured(DeviceKind::PodLink, Some(2e9), 195_000_000));
        let own = links.of_pod(7).expect("a link");
        assert_eq!((own.speed, own.tx), (2e9, 1.95e9));
        assert_eq!(
            links.of_pod(8).map(|link| link.speed),
            Some(1e9),
            "another pod's link is not its own"
        );
        links.measured.insert(1, measured(DeviceKind::Uplink, None, 0));
        assert_eq!(links.of_pod(8), None);
    }
}
