//! Reads the counters: the requests of the node's pods at every tick, the rest at every few.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use router_common::flow::{Losses, PairKey, PairStats, PodHttp, PodTraffic};
use router_common::http::{self, Stream};
use router_common::maps as limits;
use router_core::sample::{DurationSum, PodReading, ReadingWindow};

use super::maps::Maps;
use super::pairs::PairCounters;
use super::queue_pairs::QueuePairs;
use super::rdma::IwarpConnections;

/// SampledRates are over the last second.
const SPAN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);

/// A local pod's counters as they were last read.
#[derive(Clone, Debug)]
pub(super) struct PodCounters {
    pub(super) http: PodHttp,
    pub(super) traffic: PodTraffic,
    pub(super) window: ReadingWindow,
    /// When all of it was read, and when the requests were.
    pub(super) read: Instant,
    pub(super) counted: Instant,
    /// Answers whose end can only be guessed, silent for longer than the idle window.
    pub(super) silent: u64,
    /// The requests are newer than the window's last reading.
    is_ahead: bool,
}

impl PodCounters {
    fn new(read: Instant) -> PodCounters {
        PodCounters {
            http: PodHttp::default(),
            traffic: PodTraffic::default(),
            window: ReadingWindow::new(SPAN, STEP),
            read,
            counted: read,
            silent: 0,
            is_ahead: false,
        }
    }

    /// Takes in what was read `at`, on the window's clock. While nothing is counted, all readings
    /// are one.
    fn follow(&mut self, http: PodHttp, traffic: PodTraffic, silent: u64, at: Duration) {
        let is_same = !std::mem::take(&mut self.is_ahead)
            && (&self.http, &self.traffic, self.silent) == (&http, &traffic, silent);
        let last = self.window.newest().filter(|_| is_same).map(|(_, last)| Arc::clone(last));
        let reading = last.unwrap_or_else(|| {
            (self.http, self.traffic, self.silent) = (http, traffic, silent);
            Arc::new(reading(&self.http, &self.traffic, self.in_flight()))
        });
        self.window.push(at, reading);
    }

    /// Takes in the requests alone; whether it has others now than before.
    fn count(&mut self, http: PodHttp, counted: Instant) -> bool {
        let counts = |http: &PodHttp| {
            (http.in_flight(), http.waiting(), http.streaming(), http.waiting_bytes())
        };
        let is_other = counts(&self.http) != counts(&http);
        self.is_ahead |= self.http != http;
        (self.http, self.counted) = (http, counted);
        is_other
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.http.in_flight().saturating_sub(self.silent)
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
    /// Connections older than the programs: only this agent writes how many.
    seeds: HashMap<PairKey, u64>,
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
            seeds: HashMap::new(),
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
        for id in ids {
            let http = maps.pod_http.get(id)?.unwrap_or_default();
            let traffic = sum(&maps.pod_traffic.get(id)?.unwrap_or_default());
            let now = Instant::now();
            let silent = self.silent.get(id).copied().unwrap_or_default();
            let pod = self.pods.entry(*id).or_insert_with(|| PodCounters::new(now));
            (pod.read, pod.counted) = (now, now);
            pod.follow(http, traffic, silent, now - self.start);
        }
        if self.pods.len() > ids.len() {
            self.pods.retain(|id, _| ids.contains(id));
        }
        self.read = Instant::now();
        Ok(())
    }

    /// Reads the requests of the same pods alone: the ids of those that have others than before.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_requests(&mut self, maps: &Maps) -> io::Result<Vec<u32>> {
        let mut changed = Vec::new();
        for (id, pod) in &mut self.pods {
            let http = maps.pod_http.get(id)?.unwrap_or_default();
            if pod.count(http, Instant::now()) {
                changed.push(*id);
            }
        }
        self.read = Instant::now();
        Ok(changed)
    }

    /// Reads the pairs.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_pairs(&mut self, maps: &Maps) -> io::Result<()> {
        let found = maps.pairs.all(limits::PAIRS)?;
        let now = Instant::now();
        for (key, stats) in &found {
            let pair = self.pairs.entry(*key).or_insert_with(|| match self.pairs_read {
                // It was not there the last time: all of it is since then.
                Some(read) => PairCounters::new(PairStats::default(), read),
                None => PairCounters::new(*stats, now),
            });
            pair.seeded = self.seeds.get(key).copied().unwrap_or_default();
            pair.taken = self.taken.get(key).copied().unwrap_or_default();
            pair.follow(*stats, now, self.start);
        }
        if self.pairs.len() > found.len() {
            self.pairs.retain(|_, pair| pair.read == now);
        }
        self.pairs_read = Some(now);
        self.losses = maps.losses.get(&0)?.unwrap_or_default();
        Ok(())
    }

    /// Reads how many connections are older than the programs: at the start, and when it was written.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn read_seeds(&mut self, maps: &Maps) -> io::Result<()> {
        self.seeds = maps.seeds.all(limits::PAIRS)?.into_iter().collect();
        Ok(())
    }

    /// Looks through the HTTP connections for answers of unknown end that went silent, and through
    /// all for those that RDMA has taken over.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn sweep(&mut self, maps: &Maps, taken: &IwarpConnections) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let streams = maps.streams.all(limits::STREAMS)?;
        self.streams = streams.len();
        self.silent.clear();
        for (_, stream) in &streams {
            if is_silent(stream, now, self.idle_window) {
                *self.silent.entry(stream.pod).or_default() += 1;
            }
        }
        let connections = maps.connections.all(limits::CONNECTIONS)?;
        self.connections = connections.len();
        self.taken.clear();
        for (flow, connection) in &connections {
            if taken.has(flow, connection, now) {
                *self.taken.entry(connection.pair).or_default() += 1;
            }
        }
        Ok(())
    }
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

fn reading(http: &PodHttp, traffic: &PodTraffic, in_flight: u64) -> PodReading {
    let times = |ns, samples| DurationSum { sum: Duration::from_nanos(ns), samples };
    PodReading {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_were_read_between_two_whole_readings_are_in_the_second() {
        let start = Instant::now();
        let mut pod = PodCounters::new(start);
        let asked = |started| PodHttp { started, ..PodHttp::default() };
        let window = |pod: &PodCounters| Arc::clone(&pod.window.newest().expect("a reading").1);
        pod.follow(asked(0), PodTraffic::default(), 0, Duration::ZERO);
        let first = window(&pod);
        pod.follow(asked(0), PodTraffic::default(), 0, STEP);
        assert!(Arc::ptr_eq(&first, &window(&pod)), "nothing was counted");
        assert!(pod.count(asked(3), start), "it has others than before");
        assert!(!pod.count(asked(3), start));
        assert_eq!(pod.in_flight(), 3);
        pod.follow(asked(3), PodTraffic::default(), 0, 2 * STEP);
        assert_eq!((first.started, window(&pod).started), (0, 3));
        assert!(pod.window.rates().requests > 0.0);
    }
}
