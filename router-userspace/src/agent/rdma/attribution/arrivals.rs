//! RoCEv2 that the kernel half counted as it arrived, by the owner of the queue pair it came for.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use router_common::flow::{QueuePairKey, QueuePairStats};
use serde::Serialize;

use super::qp_owners::Owner;
use crate::agent::rdma::device::RdmaDevice;
use crate::agent::rdma::sysfs::Sysfs;

/// Pairs of an owner and a peer that are told apart.
const MAX_PEERS: usize = 8_192;
/// For how long a device's addresses are remembered: its table of GIDs may have 1,024 entries.
const ADDRESSES_FOR: Duration = Duration::from_secs(5);

/// One entry of the map of queue pairs.
pub type QueuePairEntry = (QueuePairKey, QueuePairStats);

/// What arrived for an owner from one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArrivedTraffic {
    pub packets: u64,
    /// Of the packets, those that were sent again: they count in nothing that follows.
    pub repeated: u64,
    /// Without headers: SENDs, WRITEs, and answers to own READs.
    pub payload_bytes: u64,
    pub writes: u64,
    /// As the requests announced them.
    pub write_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
}

/// The device's name, whose queue pair it was, and where it came from.
pub(in crate::agent) type ArrivalKey = (String, Owner, IpAddr);

/// What arrived so far.
#[derive(Debug, Default)]
pub(in crate::agent) struct Arrivals {
    last: HashMap<QueuePairKey, QueuePairStats>,
    has_begun: bool,
    /// Addresses of devices by name, and when they were read.
    addresses: HashMap<String, (Duration, Vec<IpAddr>)>,
    pub(in crate::agent) arrived: BTreeMap<ArrivalKey, ArrivedTraffic>,
}

impl Arrivals {
    /// Enters what came since the last time. What an agent before saw is nobody's.
    pub(in crate::agent) fn enter(
        &mut self,
        at: Duration,
        arrivals: &[QueuePairEntry],
        devices: &[RdmaDevice],
        sysfs: &Sysfs,
    ) {
        self.addresses.retain(|name, _| devices.iter().any(|device| device.found.name == *name));
        for device in devices.iter().filter(|device| !device.numbers.is_empty()) {
            let known = self.addresses.get(&device.found.name);
            let is_old = known.is_none_or(|(read, _)| at.saturating_sub(*read) > ADDRESSES_FOR);
            if is_old && !arrivals.is_empty() {
                let addresses = (at, sysfs.addresses(&device.found));
                self.addresses.insert(device.found.name.clone(), addresses);
            }
        }
        for (key, stats) in arrivals {
            let before = self.last.insert(*key, *stats);
            if before.is_none() && !self.has_begun {
                continue;
            }
            let destination = canonical(key.destination);
            let owner = devices.iter().find_map(|device| {
                let owner = device.numbers.get(&key.queue_pair)?;
                let (_, addresses) = self.addresses.get(&device.found.name)?;
                addresses.contains(&destination).then_some((device, owner))
            });
            let Some((device, owner)) = owner else { continue };
            let entry = (device.found.name.clone(), owner.clone(), canonical(key.source));
            if self.arrived.len() < MAX_PEERS || self.arrived.contains_key(&entry) {
                add(self.arrived.entry(entry).or_default(), stats, &before.unwrap_or_default());
            }
        }
        self.has_begun = true;
        if self.last.len() > arrivals.len() {
            let known: HashMap<QueuePairKey, QueuePairStats> = arrivals.iter().copied().collect();
            self.last.retain(|key, _| known.contains_key(key));
        }
    }

    /// What arrived for an owner at a device.
    pub(in crate::agent) fn of<'a>(
        &'a self,
        device: &'a str,
        owner: &'a Owner,
    ) -> impl Iterator<Item = (IpAddr, ArrivedTraffic)> + 'a {
        let entries = self
            .arrived
            .iter()
            .filter(move |((name, whose, _), _)| name == device && whose == owner);
        entries.map(|((_, _, peer), arrived)| (*peer, *arrived))
    }
}

impl ArrivedTraffic {
    pub(in crate::agent) fn plus(self, other: ArrivedTraffic) -> ArrivedTraffic {
        ArrivedTraffic {
            packets: self.packets.wrapping_add(other.packets),
            repeated: self.repeated.wrapping_add(other.repeated),
            payload_bytes: self.payload_bytes.wrapping_add(other.payload_bytes),
            writes: self.writes.wrapping_add(other.writes),
            write_bytes: self.write_bytes.wrapping_add(other.write_bytes),
            reads: self.reads.wrapping_add(other.reads),
            read_bytes: self.read_bytes.wrapping_add(other.read_bytes),
        }
    }
}

fn add(arrived: &mut ArrivedTraffic, now: &QueuePairStats, before: &QueuePairStats) {
    *arrived = arrived.plus(ArrivedTraffic {
        packets: now.packets.saturating_sub(before.packets),
        repeated: now.repeated.saturating_sub(before.repeated),
        payload_bytes: now.payload_bytes.saturating_sub(before.payload_bytes),
        writes: now.writes.saturating_sub(before.writes),
        write_bytes: now.write_bytes.saturating_sub(before.write_bytes),
        reads: now.reads.saturating_sub(before.reads),
        read_bytes: now.read_bytes.saturating_sub(before.read_bytes),
    });
}

fn canonical(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}
