//! Reads the counters at every tick, and makes a snapshot of them for whoever asks.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use router_common::flow::{Losses, PairKey, PairStats, PodHttp, PodTraffic};
use router_common::http::{self, Stream};
use router_common::maps as limits;
use router_core::sample::{Reading, Times, Window};

use super::maps::{Maps, single};
use super::queue_pairs::QueuePairs;
use super::rdma::Taken;

/// Rates are over the last second.
const SPAN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);

/// A local pod's counters as they were last read.
#[derive(Clone, Debug)]
pub(super) struct PodCounters {
    pub(super) http: PodHttp,
    pub(super) traffic: PodTraffic,
    pub(super) window: Window,
    pub(super) read: Instant,
    /// Answers whose end can only be guessed, silent for longer than the idle window.
    pub(super) silent: u64,
}

impl PodCounters {
    pub(super) fn in_flight(&self) -> u64 {
        self.http.in_flight().saturating_sub(self.silent)
    }
}

/// A pair's counters, and payload per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairCounters {
    pub(super) stats: PairStats,
    /// Connections older than the programs.
    pub(super) seeded: u64,
    /// Open ones that RDMA has taken over.
    pub(super) taken: u64,
    pub(super) tx_per_second: f64,
    pub(super) rx_per_second: f64,
    pub(super) read: Instant,
}

impl PairCounters {
    /// Not only the place of pairs that find no room.
    pub(super) fn is_used(&self) -> bool {
        self.stats.opened + self.seeded > 0
    }

    /// Connections, with those that RDMA has taken over.
    pub(super) fn open(&self) -> u64 {
        (self.stats.established + self.seeded).saturating_sub(self.stats.closed)
    }
}

/// What was read last.
#[derive(Debug)]
pub(super) struct Sampler {
    start: Instant,
    /// When the counters of all pods were last read.
    pub(super) read: Instant,
    idle_window: Duration,
    pub(super) pods: BTreeMap<u32, PodCounters>,
    pub(super) pairs: BTreeMap<PairKey, PairCounters>,
    pub(super) queue_pairs: QueuePairs,
    pairs_read: Option<Instant>,
    silent: HashMap<u32, u64>,
    taken: HashMap<PairKey, u64>,
    pub(super) losses: Losses,
    pub(super) streams: usize,
    pub(super) connections: usize,
}

impl Sampler {
    pub(super) fn new(idle_window: Duration) -> Sampler {
        Sampler {
            start: Instant::now(),
            read: Instant::now(),
            idle_window,
            pods: BTreeMap::new(),
            pairs: BTreeMap::new(),
            queue_pairs: QueuePairs::default(),
            pairs_read: None,
            silent: HashMap::new(),
            taken: HashMap::new(),
            losses: Losses::default(),
            streams: 0,
            connections: 0,
        }
    }

    /// Reads what the local pods of these ids have counted.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_pods(&mut self, maps: &Maps, ids: &[u32]) -> io::Result<()> {
        self.pods.retain(|id, _| ids.contains(id));
        for id in ids {
            let http = single(&maps.pod_http, *id)?;
            let traffic = sum(&maps.pod_traffic.get(id)?.unwrap_or_default());
            let now = Instant::now();
            let silent = self.silent.get(id).copied().unwrap_or_default();
            let pod = self.pods.entry(*id).or_insert_with(|| PodCounters {
                http,
                traffic,
                window: Window::new(SPAN, STEP),
                read: now,
                silent,
            });
            (pod.http, pod.traffic, pod.read, pod.silent) = (http, traffic, now, silent);
            pod.window.push(now - self.start, reading(&http, &traffic, pod.in_flight()));
        }
        self.read = Instant::now();
        Ok(())
    }

    /// Reads the pairs.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_pairs(&mut self, maps: &Maps) -> io::Result<()> {
        let seeds: HashMap<PairKey, u64> = maps
            .seeds
            .all(limits::PAIRS)?
            .into_iter()
            .filter_map(|(key, count)| Some((key, *count.first()?)))
            .collect();
        let mut pairs = BTreeMap::new();
        for (key, stats) in maps.pairs.all(limits::PAIRS)? {
            let Some(stats) = stats.first().copied() else { continue };
            let now = Instant::now();
            let mut next = PairCounters {
                stats,
                seeded: seeds.get(&key).copied().unwrap_or_default(),
                taken: self.taken.get(&key).copied().unwrap_or_default(),
                tx_per_second: 0.0,
                rx_per_second: 0.0,
                read: now,
            };
            match (self.pairs.get(&key), self.pairs_read) {
                (Some(last), _) => smooth(&mut next, last),
                // It was not there the last time: all of it is since then.
                (None, Some(read)) => {
                    let nothing = PairCounters { stats: PairStats::default(), read, ..next };
                    smooth(&mut next, &nothing);
                }
                (None, None) => {}
            }
            pairs.insert(key, next);
        }
        self.pairs = pairs;
        self.pairs_read = Some(Instant::now());
        self.losses = single(&maps.losses, 0)?;
        Ok(())
    }

    /// Looks through the HTTP connections for answers of unknown end that went silent, and through
    /// all for those that RDMA has taken over.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn sweep(&mut self, maps: &Maps, taken: &Taken) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let streams = maps.streams.all(limits::STREAMS)?;
        self.streams = streams.len();
        self.silent.clear();
        for stream in streams.iter().filter_map(|(_, stream)| stream.first()) {
            if is_silent(stream, now, self.idle_window) {
                *self.silent.entry(stream.pod).or_default() += 1;
            }
        }
        let connections = maps.connections.all(limits::CONNECTIONS)?;
        self.connections = connections.len();
        self.taken.clear();
        for (flow, connection) in &connections {
            if let Some(connection) = connection.first()
                && taken.has(flow, connection, now)
            {
                *self.taken.entry(connection.pair).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// Two thirds of a change show after a second, whatever the ticks.
fn smooth(next: &mut PairCounters, last: &PairCounters) {
    let elapsed = (next.read - last.read).as_secs_f64().max(1e-6);
    let weight = 1.0 - (-elapsed).exp();
    let mix = |before: f64, newer: u64, older: u64| {
        before + weight * (newer.saturating_sub(older) as f64 / elapsed - before)
    };
    next.tx_per_second = mix(last.tx_per_second, next.stats.tx_bytes, last.stats.tx_bytes);
    next.rx_per_second = mix(last.rx_per_second, next.stats.rx_bytes, last.stats.rx_bytes);
}

fn is_silent(stream: &Stream, now: Duration, window: Duration) -> bool {
    let endless = stream.phase == http::BODY && stream.flags & http::ENDLESS != 0;
    endless && now.saturating_sub(Duration::from_nanos(stream.last_ns)) > window
}

fn sum(cpus: &[PodTraffic]) -> PodTraffic {
    cpus.iter().fold(PodTraffic::default(), |mut sum, cpu| {
        sum.rx_packets += cpu.rx_packets;
        sum.rx_bytes += cpu.rx_bytes;
        sum.rx_payload += cpu.rx_payload;
        sum.rx_kv_payload += cpu.rx_kv_payload;
        sum.tx_packets += cpu.tx_packets;
        sum.tx_bytes += cpu.tx_bytes;
        sum.tx_payload += cpu.tx_payload;
        sum.uplink_packets += cpu.uplink_packets;
        sum.uplink_bytes += cpu.uplink_bytes;
        sum
    })
}

fn reading(http: &PodHttp, traffic: &PodTraffic, in_flight: u64) -> Reading {
    let times = |ns, samples| Times { sum: Duration::from_nanos(ns), samples };
    Reading {
        started: http.started,
        finished: http.finished,
        in_flight,
        waiting_bytes: http.waiting_bytes(),
        ttft: times(http.ttft_ns_sum, http.ttft_samples),
        itl: times(http.itl_ns_sum, http.itl_samples),
        duration: times(http.duration_ns_sum, http.duration_samples),
        ttft_us: http.ttft_us,
        itl_us: http.itl_us,
        rx_bytes: traffic.rx_bytes,
        tx_bytes: traffic.tx_bytes,
    }
}
