//! One RDMA device: its ports, who holds its queue pairs, and what was whose.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use router_core::provenance::Provenance;

use super::attribution::{Holders, Ledger};
use super::attribution::{Owner, OwnerLookup};
use super::counters::ActivityEvidence;
use super::counters::Counter;
use super::netlink::NetlinkSource;
use super::netlink::NldevCommand;
use super::netlink::{self, DeviceInfo, QueuePair};
use super::port::{ConfiguredSpeeds, PortContext, RdmaPort};
use super::sysfs::Sysfs;

/// Peers that are told apart on one device.
const MAX_PEERS: usize = 4_096;
/// `enum ib_qp_state`: ready to receive, and to send.
const ACTIVE: [u8; 2] = [2, 3];

/// A device.
#[derive(Debug)]
pub(super) struct RdmaDevice {
    pub(super) found: DeviceInfo,
    /// Netlink knows it.
    pub(super) by_netlink: bool,
    /// Empty where it is unknown.
    pub(super) driver: &'static str,
    pub(super) ports: Vec<RdmaPort>,
    /// `None` while the queue pairs cannot be listed.
    pub(super) holders: Option<Holders>,
    pub(super) ledger: Ledger,
    /// Active queue pairs with a known peer, by owner and the peer's address.
    pub(super) peers: BTreeMap<(Owner, IpAddr), u32>,
    /// Owners of queue pairs by number, those of the last look too.
    pub(super) numbers: HashMap<u32, Owner>,
    /// Both ends of connections that the connection manager has.
    pub(super) ends: Vec<(std::net::SocketAddr, std::net::SocketAddr)>,
    sequences: HashMap<u32, u64>,
    /// Bytes out and in that are in the ledger.
    settled: (u64, u64),
}

impl RdmaDevice {
    pub(super) fn new(found: DeviceInfo, by_netlink: bool, driver: &'static str) -> RdmaDevice {
        RdmaDevice {
            found,
            by_netlink,
            driver,
            ports: Vec::new(),
            holders: None,
            ledger: Ledger::default(),
            peers: BTreeMap::new(),
            numbers: HashMap::new(),
            ends: Vec::new(),
            sequences: HashMap::new(),
            settled: (0, 0),
        }
    }

    /// Whether its packets pass the host's network stack too, where tc and XDP count them: those
    /// of the drivers in software.
    pub(super) fn is_seen_by_host(&self) -> bool {
        matches!(self.driver, "rxe" | "siw")
    }

    pub(super) fn is_held(&self) -> bool {
        // Where nobody can say, somebody may.
        self.holders.as_ref().is_none_or(|holders| holders.active() > 0)
    }

    pub(super) fn index(&self) -> Option<u32> {
        self.by_netlink.then_some(self.found.index)
    }

    /// Looks at ports, links and their speeds.
    pub(super) fn look(
        &mut self,
        source: &mut dyn NetlinkSource,
        sysfs: &Sysfs,
        speeds: ConfiguredSpeeds,
    ) {
        let answer =
            self.index().and_then(|index| source.ask(NldevCommand::Ports, Some(index), None).ok());
        let mut found = answer.map(netlink::ports).unwrap_or_default();
        if found.is_empty() {
            let numbers = 1..=self.found.ports.max(1);
            found = numbers.filter_map(|number| sysfs.port(&self.found, number)).collect();
        }
        self.ports.retain(|port| found.iter().any(|found| found.number == port.number));
        for mut port in found {
            if port.interface.is_none() {
                // It is in another network namespace, or the driver did not tell the kernel.
                let name = sysfs.interface(&self.found, port.number);
                port.interface = name.map(|name| (0, name));
            }
            let known = self.ports.iter().position(|known| known.number == port.number);
            let at = known.unwrap_or_else(|| {
                self.ports.push(RdmaPort::new(port.number));
                self.ports.len() - 1
            });
            let of =
                PortContext { device: &self.found.name, index: None, driver: "", is_held: false };
            self.ports[at].describe(port, of, sysfs, speeds);
        }
    }

    /// Looks at the queue pairs, and enters what moved since the last look.
    pub(super) fn count(
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
        self.settle(&before, &holders);
        self.holders = Some(holders);
        if self.has_worked(&pairs) {
            self.ports.iter_mut().for_each(|port| port.watch.worked(at, ActivityEvidence::Sure));
        }
        let older = std::mem::take(&mut self.numbers);
        self.numbers = numbers(&pairs, owners);
        self.connections(index, source, &pairs, owners);
        for (number, owner) in older {
            self.numbers.entry(number).or_insert(owner);
        }
    }

    /// Enters what was counted since the last time.
    fn settle(&mut self, before: &Holders, after: &Holders) {
        let sum = |counter| {
            let grown = self.ports.iter().map(|port| port.meter.grown(counter).unwrap_or_default());
            grown.fold(0, u64::wrapping_add)
        };
        let now = (sum(Counter::TxBytes), sum(Counter::RxBytes));
        let jumped = self.ports.iter_mut().fold(false, |jumped, port| port.take_jump() | jumped);
        let provenance = if jumped { Provenance::Estimated } else { Provenance::Exact };
        let (tx, rx) = (now.0.wrapping_sub(self.settled.0), now.1.wrapping_sub(self.settled.1));
        self.ledger.settle(before, after, (tx, rx), provenance);
        self.settled = now;
        let holders = [before, after];
        self.ledger.make_room(|owner| holders.iter().any(|held| held.has(owner)));
    }

    /// Whether a queue pair that was ready to send then and is now has sent or received.
    fn has_worked(&mut self, pairs: &[QueuePair]) -> bool {
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

    /// Asks the connection manager for peers.
    fn connections(
        &mut self,
        index: u32,
        source: &mut dyn NetlinkSource,
        pairs: &[QueuePair],
        owners: &mut OwnerLookup<'_>,
    ) {
        self.peers.clear();
        self.ends.clear();
        let Ok(answer) = source.ask(NldevCommand::ConnectionIds, Some(index), None) else { return };
        let active: HashMap<u32, bool> =
            pairs.iter().map(|pair| (pair.number, ACTIVE.contains(&pair.state))).collect();
        for id in netlink::connection_ids(answer) {
            let Some(destination) = id.destination else { continue };
            self.ends.extend(id.source.map(|source| (source, destination)));
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

fn numbers(pairs: &[QueuePair], owners: &mut OwnerLookup<'_>) -> HashMap<u32, Owner> {
    let user = pairs.iter().filter_map(|pair| Some((pair.number, pair.pid?)));
    user.map(|(number, pid)| (number, owners.of(pid).clone())).collect()
}
