//! [`Arrivals`]: RoCEv2 traffic that the eBPF programs counted on arrival, by the owner of the
//! destination queue pair.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use router_common::flow::{QueuePairKey, QueuePairStats};
use serde::Serialize;

use super::qp_owners::Owner;
use crate::agent::pods::map_contents::canonical_address;
use crate::agent::rdma::device::RdmaDevice;
use crate::agent::rdma::sysfs::Sysfs;

/// Maximum number of pairs of an owner and a peer.
const MAX_PEERS: usize = 8_192;
/// Time for which a device's addresses are cached: its GID table may have 1,024 entries.
const ADDRESS_CACHE_TIME: Duration = Duration::from_secs(5);

/// One entry of the BPF map of queue pairs.
pub type QueuePairEntry = (QueuePairKey, QueuePairStats);

/// Traffic that arrived for one owner from one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArrivedTraffic {
    pub packets: u64,
    /// Retransmitted packets. They are not in the counters below.
    pub repeated: u64,
    /// Payload of SENDs, WRITEs, and responses to own READs, without headers.
    pub payload_bytes: u64,
    pub writes: u64,
    /// Bytes that the WRITE requests announced.
    pub write_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
}

/// The device's name, the owner of the queue pair, and the source address.
pub(in crate::agent) type ArrivalKey = (String, Owner, IpAddr);

/// Traffic that arrived since the agent started.
#[derive(Debug, Default)]
pub(in crate::agent) struct Arrivals {
    last: HashMap<QueuePairKey, QueuePairStats>,
    has_baseline: bool,
    /// The devices' addresses by device name, and when they were read.
    addresses: HashMap<String, (Duration, Vec<IpAddr>)>,
    pub(in crate::agent) arrived: BTreeMap<ArrivalKey, ArrivedTraffic>,
}

impl Arrivals {
    /// Adds the traffic since the last call to its owners. Traffic from before the first call is not
    /// attributed.
    pub(in crate::agent) fn record(
        &mut self,
        at: Duration,
        arrivals: &[QueuePairEntry],
        devices: &[RdmaDevice],
        sysfs: &Sysfs,
    ) {
        self.addresses.retain(|name, _| devices.iter().any(|device| device.info.name == *name));
        for device in devices.iter().filter(|device| !device.owner_by_number.is_empty()) {
            let known = self.addresses.get(&device.info.name);
            let is_old =
                known.is_none_or(|(read, _)| at.saturating_sub(*read) > ADDRESS_CACHE_TIME);
            if is_old && !arrivals.is_empty() {
                let addresses = (at, sysfs.addresses(&device.info));
                self.addresses.insert(device.info.name.clone(), addresses);
            }
        }
        for (key, stats) in arrivals {
            let before = self.last.insert(*key, *stats);
            if before.is_none() && !self.has_baseline {
                continue;
            }
            let destination = canonical_address(key.destination);
            let owner = devices.iter().find_map(|device| {
                let owner = device.owner_by_number.get(&key.queue_pair)?;
                let (_, addresses) = self.addresses.get(&device.info.name)?;
                addresses.contains(&destination).then_some((device, owner))
            });
            let Some((device, owner)) = owner else { continue };
            let entry = (device.info.name.clone(), owner.clone(), canonical_address(key.source));
            if self.arrived.len() < MAX_PEERS || self.arrived.contains_key(&entry) {
                add(self.arrived.entry(entry).or_default(), stats, &before.unwrap_or_default());
            }
        }
        self.has_baseline = true;
        if self.last.len() > arrivals.len() {
            let known: HashMap<QueuePairKey, QueuePairStats> = arrivals.iter().copied().collect();
            self.last.retain(|key, _| known.contains_key(key));
        }
    }

    /// Traffic that arrived for an owner on a device, by source address.
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
