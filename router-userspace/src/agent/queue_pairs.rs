//! RoCEv2 by queue pair, as the packets that came over uplinks name it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use router_common::flow::{QueuePairKey, QueuePairStats};
use router_common::maps as limits;
use serde::Serialize;

use super::maps::Maps;
use super::rdma::QueuePairEntry;
use super::registry::Entry;

/// Queue pairs that a snapshot names, the busiest ones.
const SHOWN: usize = 512;
/// With so many in the map, those that were silent for a while make room.
const CROWDED: usize = limits::QUEUE_PAIRS / 4 * 3;
const SILENT: Duration = Duration::from_secs(60);

/// What was read of one queue pair.
#[derive(Clone, Copy, Debug)]
struct Counted {
    stats: QueuePairStats,
    payload_per_second: f64,
    read: Instant,
    changed: Instant,
}

/// Every queue pair in the map.
#[derive(Debug, Default)]
pub(super) struct QueuePairs {
    rows: HashMap<QueuePairKey, Counted>,
    others: QueuePairStats,
}

/// One queue pair in `/v1/loads`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct QueuePairLoad {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The destination's number for it.
    pub(super) queue_pair: u32,
    /// The pod that has the destination's address, if one is known.
    pub(super) pod: Option<Arc<str>>,
    #[serde(flatten)]
    pub(super) counted: RoceCounts,
    pub(super) payload_bytes_per_second: f64,
    pub(super) age_ms: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct RoceCounts {
    pub(super) packets: u64,
    pub(super) repeated: u64,
    pub(super) messages: u64,
    pub(super) payload_bytes: u64,
    pub(super) writes: u64,
    pub(super) write_bytes: u64,
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
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
#[derive(Clone, Debug, Serialize)]
pub(super) struct RoceLoad {
    /// The busiest queue pairs.
    pub(super) queue_pairs: Vec<QueuePairLoad>,
    /// How many are known, shown or not.
    pub(super) known: usize,
    /// Those that found no room in the map, and those that made room.
    pub(super) others: RoceCounts,
}

impl QueuePairs {
    /// Reads the map.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read(&mut self, maps: &Maps) -> io::Result<()> {
        let now = Instant::now();
        let mut rows = HashMap::new();
        for (key, stats) in maps.queue_pairs.all(limits::QUEUE_PAIRS)? {
            if key == QueuePairKey::default() {
                self.others = stats;
                continue;
            }
            let counted = self.rows.get(&key).map_or_else(
                || Counted { stats, payload_per_second: 0.0, read: now, changed: now },
                |last| last.followed_by(stats, now),
            );
            rows.insert(key, counted);
        }
        self.rows = rows;
        if self.rows.len() > CROWDED { self.make_room(maps, now) } else { Ok(()) }
    }

    /// What was read, queue pair by queue pair.
    pub(super) fn arrivals(&self) -> impl Iterator<Item = QueuePairEntry> {
        self.rows.iter().map(|(key, row)| (*key, row.stats))
    }

    /// Moves what silent queue pairs counted to the others, and removes them.
    fn make_room(&mut self, maps: &Maps, now: Instant) -> io::Result<()> {
        let silent = |row: &Counted| now - row.changed > SILENT;
        let leaving: Vec<QueuePairKey> =
            self.rows.iter().filter(|(_, row)| silent(row)).map(|(key, _)| *key).collect();
        for key in leaving {
            let Some(row) = self.rows.remove(&key) else { continue };
            if maps.queue_pairs.remove(&key)? {
                self.others = sum(self.others, row.stats);
            }
        }
        maps.queue_pairs.set(&QueuePairKey::default(), &self.others)
    }

    pub(super) fn load<'e>(
        &self,
        entries: impl Iterator<Item = &'e Entry>,
        now: Instant,
    ) -> RoceLoad {
        let names: HashMap<IpAddr, &Arc<str>> = entries
            .filter(|entry| !entry.placed.pod.host_network)
            .map(|entry| (entry.placed.pod.address, &entry.placed.pod.name))
            .collect();
        let mut busiest: Vec<(&QueuePairKey, &Counted)> = self.rows.iter().collect();
        busiest.sort_by(|(_, a), (_, b)| {
            let weight = |row: &Counted| (row.stats.payload_bytes, row.stats.packets);
            weight(b).cmp(&weight(a))
        });
        let queue_pairs = busiest.into_iter().take(SHOWN).map(|(key, row)| {
            let destination = address(key.destination);
            QueuePairLoad {
                source: address(key.source),
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
            known: self.rows.len(),
            others: self.others.into(),
        }
    }
}

impl Counted {
    fn followed_by(&self, stats: QueuePairStats, now: Instant) -> Counted {
        let elapsed = (now - self.read).as_secs_f64().max(1e-6);
        let moved = stats.payload_bytes.saturating_sub(self.stats.payload_bytes);
        // Two thirds of a change show after a second, however often the map is read.
        let weight = 1.0 - (-elapsed).exp();
        let change = moved as f64 / elapsed - self.payload_per_second;
        Counted {
            stats,
            payload_per_second: self.payload_per_second + weight * change,
            read: now,
            changed: if stats == self.stats { self.changed } else { now },
        }
    }
}

fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
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
    fn the_busiest_come_first_and_the_rest_is_only_known() {
        let now = Instant::now();
        let mut pairs = QueuePairs::default();
        for number in 0..SHOWN as u32 + 8 {
            let mut source = [0; 16];
            source[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
            let key = QueuePairKey { source, destination: source, queue_pair: number };
            let stats = QueuePairStats { payload_bytes: number.into(), ..Default::default() };
            let counted = Counted { stats, payload_per_second: 0.0, read: now, changed: now };
            pairs.rows.insert(key, counted);
        }
        let load = pairs.load(std::iter::empty(), now);
        assert_eq!((load.queue_pairs.len(), load.known), (SHOWN, SHOWN + 8));
        let first = &load.queue_pairs[0];
        assert_eq!(first.queue_pair, SHOWN as u32 + 7);
        assert_eq!(first.source, "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
