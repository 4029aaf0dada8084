//! One RDMA device: its ports, the owners of its queue pairs, and whose traffic it carried.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use router_core::provenance::Provenance;

use super::attribution::{Holders, Ledger, Owner, OwnerLookup};
use super::counters::{ActivityEvidence, Counter};
use super::netlink::{self, DeviceInfo, NetlinkSource, NldevCommand, QueuePair};
use super::port::{ConfiguredSpeeds, PortContext, RdmaPort};
use super::sysfs::Sysfs;

/// Maximum number of peers of one device.
const MAX_PEERS: usize = 4_096;
/// `enum ib_qp_state`: ready to receive, ready to send.
const ACTIVE: [u8; 2] = [2, 3];

/// An RDMA device.
#[derive(Debug)]
pub(super) struct RdmaDevice {
    pub(super) info: DeviceInfo,
    /// Whether netlink lists the device. If not, it is known from sysfs alone.
    pub(super) is_in_netlink: bool,
    /// Empty if unknown.
    pub(super) driver: &'static str,
    pub(super) ports: Vec<RdmaPort>,
    /// `None` if the queue pairs cannot be listed.
    pub(super) holders: Option<Holders>,
    pub(super) ledger: Ledger,
    /// Active queue pairs with a known peer, by owner and the peer's address.
    pub(super) peers: BTreeMap<(Owner, IpAddr), u32>,
    /// Owners by queue pair number, including those of the previous scan.
    pub(super) owner_by_number: HashMap<u32, Owner>,
    /// Local and remote address of the connection manager's connections.
    pub(super) endpoints: Vec<(std::net::SocketAddr, std::net::SocketAddr)>,
    sequences: HashMap<u32, u64>,
    /// Bytes sent and received that the ledger contains.
    attributed: (u64, u64),
}

impl RdmaDevice {
    pub(super) fn new(info: DeviceInfo, is_in_netlink: bool, driver: &'static str) -> RdmaDevice {
        RdmaDevice {
            info,
            is_in_netlink,
            driver,
            ports: Vec::new(),
            holders: None,
            ledger: Ledger::default(),
            peers: BTreeMap::new(),
            owner_by_number: HashMap::new(),
            endpoints: Vec::new(),
            sequences: HashMap::new(),
            attributed: (0, 0),
        }
    }

    /// Whether its packets also pass the host's network stack, where tc and XDP count them. That is
    /// so for software drivers.
    pub(super) fn is_seen_by_host(&self) -> bool {
        matches!(self.driver, "rxe" | "siw")
    }

    pub(super) fn is_in_use(&self) -> bool {
        // If the holders are unknown, assume that the device is in use.
        self.holders.as_ref().is_none_or(|holders| holders.active() > 0)
    }

    pub(super) fn index(&self) -> Option<u32> {
        self.is_in_netlink.then_some(self.info.index)
    }

    /// Updates the ports, their interfaces and their speeds.
    pub(super) fn discover_ports(
        &mut self,
        source: &mut dyn NetlinkSource,
        sysfs: &Sysfs,
        speeds: ConfiguredSpeeds,
    ) {
        let answer =
            self.index().and_then(|index| source.ask(NldevCommand::Ports, Some(index), None).ok());
        let mut found = answer.map(netlink::ports).unwrap_or_default();
        if found.is_empty() {
            let numbers = 1..=self.info.ports.max(1);
            found = numbers.filter_map(|number| sysfs.port(&self.info, number)).collect();
        }
        self.ports.retain(|port| found.iter().any(|found| found.number == port.number));
        for mut port in found {
            if port.interface.is_none() {
                // The interface is in another network namespace, or the driver did not register it.
                let name = sysfs.interface(&self.info, port.number);
                port.interface = name.map(|name| (0, name));
            }
            let existing = self.ports.iter().position(|known| known.number == port.number);
            let at = existing.unwrap_or_else(|| {
                self.ports.push(RdmaPort::new(port.number));
                self.ports.len() - 1
            });
            let context =
                PortContext { device: &self.info.name, index: None, driver: "", is_in_use: false };
            self.ports[at].describe(port, context, sysfs, speeds);
        }
    }

    /// Lists the queue pairs, and attributes the traffic since the previous scan to their owners.
    pub(super) fn scan_queue_pairs(
        &mut self,
        at: Duration,
        source: &mut dyn NetlinkSource,
        owners: &mut OwnerLookup<'_>,
    ) {
        let Some(index) = self.index() else { return };
        let Ok(answer) = source.ask(NldevCommand::QueuePairs, Some(index), None) else {
            self.holders = None;
            return;
        };
        let pairs = netlink::queue_pairs(answer);
        let holders = Holders::count(&pairs, owners);
        let before = self.holders.take().unwrap_or_else(|| holders.clone());
        self.attribute_growth(&before, &holders);
        self.holders = Some(holders);
        if self.has_advanced(&pairs) {
            self.ports
                .iter_mut()
                .for_each(|port| port.staleness.on_activity(at, ActivityEvidence::Certain));
        }
        let older = std::mem::take(&mut self.owner_by_number);
        self.owner_by_number = owner_by_number(&pairs, owners);
        self.scan_connections(index, source, &pairs, owners);
        for (number, owner) in older {
            self.owner_by_number.entry(number).or_insert(owner);
        }
    }

    /// Attributes the bytes that the ports counted since the last call.
    fn attribute_growth(&mut self, before: &Holders, after: &Holders) {
        let sum = |counter| {
            let grown =
                self.ports.iter().map(|port| port.history.total(counter).unwrap_or_default());
            grown.fold(0, u64::wrapping_add)
        };
        let now = (sum(Counter::TxBytes), sum(Counter::RxBytes));
        let jumped = self.ports.iter_mut().fold(false, |jumped, port| port.take_jump() | jumped);
        let provenance = if jumped { Provenance::Estimated } else { Provenance::Exact };
        let (tx, rx) =
            (now.0.wrapping_sub(self.attributed.0), now.1.wrapping_sub(self.attributed.1));
        self.ledger.attribute(before, after, (tx, rx), provenance);
        self.attributed = now;
        let holders = [before, after];
        self.ledger.evict(|owner| holders.iter().any(|held| held.contains(owner)));
    }

    /// Whether the sequence numbers of a queue pair advanced that is, and was, ready to send.
    fn has_advanced(&mut self, pairs: &[QueuePair]) -> bool {
        let ready = pairs.iter().filter(|pair| pair.state == 3 && pair.kind > 1);
        let sequences: HashMap<u32, u64> = ready
            .map(|pair| {
                let both = u64::from(pair.send_sequence) << 32 | u64::from(pair.receive_sequence);
                (pair.number, both)
            })
            .collect();
        let before = std::mem::replace(&mut self.sequences, sequences);
        let moved = |(number, sequence): (&u32, &u64)| {
            before.get(number).is_some_and(|before| before != sequence)
        };
        self.sequences.iter().any(moved)
    }

    /// Lists the connection manager's connections, for peers and endpoints.
    fn scan_connections(
        &mut self,
        index: u32,
        source: &mut dyn NetlinkSource,
        pairs: &[QueuePair],
        owners: &mut OwnerLookup<'_>,
    ) {
        self.peers.clear();
        self.endpoints.clear();
        let Ok(answer) = source.ask(NldevCommand::ConnectionIds, Some(index), None) else { return };
        let active: HashMap<u32, bool> =
            pairs.iter().map(|pair| (pair.number, ACTIVE.contains(&pair.state))).collect();
        for id in netlink::connection_ids(answer) {
            let Some(destination) = id.destination else { continue };
            self.endpoints.extend(id.source.map(|source| (source, destination)));
            let is_active = id.queue_pair.and_then(|number| active.get(&number));
            if is_active != Some(&true) {
                continue;
            }
            let owner = id.pid.map_or(&Owner::Kernel, |pid| owners.of(pid)).clone();
            let key = (owner, destination.ip());
            if self.peers.len() < MAX_PEERS || self.peers.contains_key(&key) {
                *self.peers.entry(key).or_default() += 1;
            }
        }
    }
}

fn owner_by_number(pairs: &[QueuePair], owners: &mut OwnerLookup<'_>) -> HashMap<u32, Owner> {
    let user = pairs.iter().filter_map(|pair| Some((pair.number, pair.pid?)));
    user.map(|(number, pid)| (number, owners.of(pid).clone())).collect()
}
