//! RoCEv2 counters by queue pair, from the packets that arrive over uplinks.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use router_common::flow::{QueuePairKey, QueuePairStats};
use router_common::maps as limits;
use serde::Serialize;

use crate::agent::bpf::maps::Maps;
use crate::agent::pods::map_contents::canonical_address;
use crate::agent::pods::registered_pod::RegisteredPod;
use crate::agent::rdma::QueuePairEntry;

/// Maximum number of queue pairs in a snapshot; the busiest are shown.
const MAX_SHOWN: usize = 512;
/// If the map has more entries than this, silent queue pairs are removed.
const CLEANUP_THRESHOLD: usize = limits::QUEUE_PAIRS / 4 * 3;
/// Time without a packet after which a queue pair is silent.
const SILENT_AFTER: Duration = Duration::from_secs(60);

/// The latest reading of one queue pair.
#[derive(Clone, Copy, Debug)]
struct QueuePairReading {
    stats: QueuePairStats,
    payload_per_second: f64,
    read: Instant,
    changed: Instant,
}

/// The readings of every queue pair in the map.
#[derive(Debug, Default)]
pub(in crate::agent) struct QueuePairs {
    rows: HashMap<QueuePairKey, QueuePairReading>,
    /// Counts of queue pairs that did not fit into the map, or were removed from it.
    others: QueuePairStats,
}

/// One queue pair in `/v1/loads`.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct QueuePairLoad {
    pub(in crate::agent) source: IpAddr,
    pub(in crate::agent) destination: IpAddr,
    /// Number of the queue pair at the destination.
    pub(in crate::agent) queue_pair: u32,
    /// The pod at the destination's address, if it is known.
    pub(in crate::agent) pod: Option<Arc<str>>,
    #[serde(flatten)]
    pub(in crate::agent) counted: RoceCounts,
    pub(in crate::agent) payload_bytes_per_second: f64,
    pub(in crate::agent) age_ms: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::agent) struct RoceCounts {
    pub(in crate::agent) packets: u64,
    pub(in crate::agent) repeated: u64,
    pub(in crate::agent) messages: u64,
    pub(in crate::agent) payload_bytes: u64,
    pub(in crate::agent) writes: u64,
    pub(in crate::agent) write_bytes: u64,
    pub(in crate::agent) reads: u64,
    pub(in crate::agent) read_bytes: u64,
}

impl From<QueuePairStats> for RoceCounts {
    fn from(stats: QueuePairStats) -> RoceCounts {
        RoceCounts {
            packets: stats.packets,
            repeated: stats.repeated,
            messages: stats.messages,
            payload_bytes: stats.payload_bytes,
            writes: stats.writes,
            write_bytes: stats.write_bytes,
            reads: stats.reads,
            read_bytes: stats.read_bytes,
        }
    }
}

/// RoCEv2 in `/v1/loads`.
#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::agent) struct RoceLoad {
    /// The busiest queue pairs.
    pub(in crate::agent) queue_pairs: Vec<QueuePairLoad>,
    /// Number of queue pairs in the map, shown or not.
    pub(in crate::agent) queue_pair_count: usize,
    /// Counts of queue pairs that did not fit into the map, or were removed from it.
    pub(in crate::agent) others: RoceCounts,
}

impl QueuePairs {
    /// Reads the map.
    ///
    /// # Errors
    /// The kernel's, if the map cannot be read or written.
    pub(in crate::agent) fn read(&mut self, maps: &Maps) -> io::Result<()> {
        let now = Instant::now();
        let mut rows = HashMap::new();
        for (key, stats) in maps.queue_pairs.all(limits::QUEUE_PAIRS)? {
            if key == QueuePairKey::default() {
                self.others = stats;
                continue;
            }
            let counted = self.rows.get(&key).map_or_else(
                || QueuePairReading { stats, payload_per_second: 0.0, read: now, changed: now },
                |last| last.next(stats, now),
            );
            rows.insert(key, counted);
        }
        self.rows = rows;
        if self.rows.len() > CLEANUP_THRESHOLD { self.remove_silent(maps, now) } else { Ok(()) }
    }

    /// The counters of each queue pair.
    pub(in crate::agent) fn arrivals(&self) -> impl Iterator<Item = QueuePairEntry> {
        self.rows.iter().map(|(key, row)| (*key, row.stats))
    }

    /// Adds the counts of silent queue pairs to the others, and removes them.
    fn remove_silent(&mut self, maps: &Maps, now: Instant) -> io::Result<()> {
        let silent = |row: &QueuePairReading| now - row.changed > SILENT_AFTER;
        let removed: Vec<QueuePairKey> =
            self.rows.iter().filter(|(_, row)| silent(row)).map(|(key, _)| *key).collect();
        for key in removed {
            let Some(row) = self.rows.remove(&key) else { continue };
            if maps.queue_pairs.remove(&key)? {
                self.others = sum(self.others, row.stats);
            }
        }
        maps.queue_pairs.set(&QueuePairKey::default(), &self.others)
    }

    pub(in crate::agent) fn load<'p>(
        &self,
        pods: impl Iterator<Item = &'p RegisteredPod>,
        now: Instant,
    ) -> RoceLoad {
        let names: HashMap<IpAddr, &Arc<str>> = pods
            .filter(|pod| !pod.placed.pod.host_network)
            .flat_map(|pod| {
                let name = &pod.placed.pod.name;
                pod.placed.pod.addresses().map(move |address| (address, name))
            })
            .collect();
        let mut busiest: Vec<(&QueuePairKey, &QueuePairReading)> = self.rows.iter().collect();
        busiest.sort_by(|(_, a), (_, b)| {
            let weight = |row: &QueuePairReading| (row.stats.payload_bytes, row.stats.packets);
            weight(b).cmp(&weight(a))
        });
        let queue_pairs = busiest.into_iter().take(MAX_SHOWN).map(|(key, row)| {
            let destination = canonical_address(key.destination);
            QueuePairLoad {
                source: canonical_address(key.source),
                destination,
                queue_pair: key.queue_pair,
                pod: names.get(&destination).copied().cloned(),
                counted: row.stats.into(),
                payload_bytes_per_second: row.payload_per_second,
                age_ms: (now - row.read).as_secs_f64() * 1e3,
            }
        });
        RoceLoad {
            queue_pairs: queue_pairs.collect(),
            queue_pair_count: self.rows.len(),
            others: self.others.into(),
        }
    }
}

impl QueuePairReading {
    fn next(&self, stats: QueuePairStats, now: Instant) -> QueuePairReading {
        let elapsed = (now - self.read).as_secs_f64().max(1e-6);
        let moved = stats.payload_bytes.saturating_sub(self.stats.payload_bytes);
        // Moving average with a time constant of one second, independent of how often it is read.
        let weight = 1.0 - (-elapsed).exp();
        let change = moved as f64 / elapsed - self.payload_per_second;
        QueuePairReading {
            stats,
            payload_per_second: self.payload_per_second + weight * change,
            read: now,
            changed: if stats == self.stats { self.changed } else { now },
        }
    }
}

fn sum(one: QueuePairStats, other: QueuePairStats) -> QueuePairStats {
    QueuePairStats {
        packets: one.packets + other.packets,
        repeated: one.repeated + other.repeated,
        payload_bytes: one.payload_bytes + other.payload_bytes,
        messages: one.messages + other.messages,
        writes: one.writes + other.writes,
        write_bytes: one.write_bytes + other.write_bytes,
        reads: one.reads + other.reads,
        read_bytes: one.read_bytes + other.read_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_come_first_and_the_rest_is_only_counted() {
        let now = Instant::now();
        let mut pairs = QueuePairs::default();
        for number in 0..MAX_SHOWN as u32 + 8 {
            let mut source = [0; 16];
            source[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
            let key = QueuePairKey { source, destination: source, queue_pair: number };
            let stats = QueuePairStats { payload_bytes: number.into(), ..Default::default() };
            let counted =
                QueuePairReading { stats, payload_per_second: 0.0, read: now, changed: now };
            pairs.rows.insert(key, counted);
        }
        let load = pairs.load(std::iter::empty(), now);
        assert_eq!((load.queue_pairs.len(), load.queue_pair_count), (MAX_SHOWN, MAX_SHOWN + 8));
        let first = &load.queue_pairs[0];
        assert_eq!(first.queue_pair, MAX_SHOWN as u32 + 7);
        assert_eq!(first.source, "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
