//! Reads the counters: requests of local pods at every tick, everything else less often.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use router_common::flow::{Losses, PairKey, PairStats, PodHttp, PodTraffic};
use router_common::http::{self, HttpStream};
use router_common::maps as limits;
use router_core::sample::{DurationSum, PodReading, ReadingWindow};

use crate::agent::bpf::maps::Maps;
use crate::agent::counters::pairs::PairCounters;
use crate::agent::counters::queue_pairs::QueuePairs;
use crate::agent::rdma::IwarpConnections;

/// Rates are over the last second.
const SPAN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);

/// The latest counters of a local pod.
#[derive(Clone, Debug)]
pub(in crate::agent) struct PodCounters {
    pub(in crate::agent) http: PodHttp,
    pub(in crate::agent) traffic: PodTraffic,
    pub(in crate::agent) window: ReadingWindow,
    /// Time of the last reading of all counters.
    pub(in crate::agent) read: Instant,
    /// Time of the last reading of the requests.
    pub(in crate::agent) requests_read: Instant,
    /// Responses that end with their connection alone, and have been silent for the idle window.
    pub(in crate::agent) silent: u64,
    /// Requests are counted on the pod's interface, not at its sockets.
    pub(in crate::agent) by_interface: bool,
    /// The requests are newer than the last reading in the window.
    is_ahead: bool,
}

impl PodCounters {
    fn new(read: Instant) -> PodCounters {
        PodCounters {
            http: PodHttp::default(),
            traffic: PodTraffic::default(),
            window: ReadingWindow::new(SPAN, STEP),
            read,
            requests_read: read,
            silent: 0,
            by_interface: false,
            is_ahead: false,
        }
    }

    /// Adds a reading taken `at`, on the window's clock. Equal readings share one allocation.
    fn observe(&mut self, http: PodHttp, traffic: PodTraffic, silent: u64, at: Duration) {
        let is_same = !std::mem::take(&mut self.is_ahead)
            && (&self.http, &self.traffic, self.silent) == (&http, &traffic, silent);
        let last = self.window.newest().filter(|_| is_same).map(|(_, last)| Arc::clone(last));
        let reading = last.unwrap_or_else(|| {
            (self.http, self.traffic, self.silent) = (http, traffic, silent);
            Arc::new(self.reading())
        });
        self.window.push(at, reading);
    }

    /// Stores a reading of the requests alone; returns whether the pod has other requests than before.
    fn observe_requests(&mut self, http: PodHttp, read: Instant) -> bool {
        let counts = |http: &PodHttp| {
            (http.in_flight(), http.waiting(), http.streaming(), http.waiting_bytes())
        };
        let has_changed = counts(&self.http) != counts(&http);
        self.is_ahead |= self.http != http;
        (self.http, self.requests_read) = (http, read);
        has_changed
    }

    pub(in crate::agent) fn in_flight(&self) -> u64 {
        self.http.in_flight().saturating_sub(self.silent)
    }

    /// The latest counters as the windows of rates take them.
    fn reading(&self) -> PodReading {
        let (http, traffic) = (&self.http, &self.traffic);
        let times = |ns, samples| DurationSum { sum: Duration::from_nanos(ns), samples };
        let (rx_bytes, tx_bytes) = match self.by_interface {
            true => (traffic.rx_bytes, traffic.tx_bytes),
            false => (traffic.socket_rx_payload, traffic.socket_tx_payload),
        };
        PodReading {
            started: http.started,
            finished: http.finished,
            in_flight: self.in_flight(),
            waiting_bytes: http.waiting_bytes(),
            ttft: times(http.ttft_ns_sum, http.ttft_samples),
            itl: times(http.itl_ns_sum, http.itl_samples),
            duration: times(http.duration_ns_sum, http.duration_samples),
            ttft_us: http.ttft_us,
            itl_us: http.itl_us,
            rx_bytes,
            tx_bytes,
        }
    }
}

/// The latest counters of the node.
#[derive(Debug)]
pub(in crate::agent) struct Sampler {
    start: Instant,
    /// When the counters of all pods were last read.
    pub(in crate::agent) read: Instant,
    response_idle_timeout: Duration,
    /// Local pods by id.
    pub(in crate::agent) pods: BTreeMap<u32, PodCounters>,
    pub(in crate::agent) pairs: BTreeMap<PairKey, PairCounters>,
    pub(in crate::agent) queue_pairs: QueuePairs,
    pairs_read: Option<Instant>,
    /// Connections that are older than the programs; only this agent writes their map.
    preexisting: HashMap<PairKey, u64>,
    /// Silent responses of each pod.
    silent: HashMap<u32, u64>,
    /// Connections that RDMA has taken over (iWARP).
    offloaded: HashMap<PairKey, u64>,
    pub(in crate::agent) losses: Losses,
    /// Ids of pods whose requests are counted on their interface.
    pub(in crate::agent) by_interface: HashSet<u32>,
    /// Ids of pods whose sockets move what no program sees: their requests are unknown.
    pub(in crate::agent) unseen: HashSet<u32>,
    /// Number of HTTP connections in the map.
    pub(in crate::agent) streams: usize,
    /// Number of TCP connections in the map.
    pub(in crate::agent) connections: usize,
}

impl Sampler {
    pub(in crate::agent) fn new(response_idle_timeout: Duration) -> Sampler {
        Sampler {
            start: Instant::now(),
            read: Instant::now(),
            response_idle_timeout,
            pods: BTreeMap::new(),
            pairs: BTreeMap::new(),
            queue_pairs: QueuePairs::default(),
            pairs_read: None,
            preexisting: HashMap::new(),
            silent: HashMap::new(),
            offloaded: HashMap::new(),
            losses: Losses::default(),
            by_interface: HashSet::new(),
            unseen: HashSet::new(),
            streams: 0,
            connections: 0,
        }
    }

    /// Reads all counters of the local pods `ids`.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be read.
    pub(in crate::agent) fn read_pods(&mut self, maps: &Maps, ids: &[u32]) -> io::Result<()> {
        for id in ids {
            let http = maps.pod_http.get(id)?.unwrap_or_default();
            let traffic = maps.pod_traffic.get(id)?.unwrap_or_default().into_iter().sum();
            let now = Instant::now();
            let silent = self.silent.get(id).copied().unwrap_or_default();
            let pod = self.pods.entry(*id).or_insert_with(|| PodCounters::new(now));
            (pod.read, pod.requests_read) = (now, now);
            let by_interface = self.by_interface.contains(id);
            if by_interface != pod.by_interface {
                // Other counters from now on: the windows of rates start again.
                *pod = PodCounters { by_interface, ..PodCounters::new(now) };
            }
            pod.observe(http, traffic, silent, now - self.start);
        }
        if self.pods.len() > ids.len() {
            self.pods.retain(|id, _| ids.contains(id));
        }
        self.read = Instant::now();
        Ok(())
    }

    /// The counters of pod `id`, if the programs see it. A pod that they do not see has no record in load
    /// frames: to gateways its load is unknown. A pod of which nothing at all was seen has none either: its
    /// packets may take a way that no program is on.
    pub(in crate::agent) fn seen(&self, id: u32) -> Option<&PodCounters> {
        let is_seen =
            |pod: &&PodCounters| !self.unseen.contains(&id) && pod.traffic != PodTraffic::default();
        self.pods.get(&id).filter(is_seen)
    }

    /// Reads the requests of the same pods alone; returns the ids of pods whose requests changed.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be read.
    pub(in crate::agent) fn read_requests(&mut self, maps: &Maps) -> io::Result<Vec<u32>> {
        let mut changed = Vec::new();
        for (id, pod) in &mut self.pods {
            let http = maps.pod_http.get(id)?.unwrap_or_default();
            if pod.observe_requests(http, Instant::now()) {
                changed.push(*id);
            }
        }
        self.read = Instant::now();
        Ok(changed)
    }

    /// Reads the pairs.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be read.
    pub(in crate::agent) fn read_pairs(&mut self, maps: &Maps) -> io::Result<()> {
        let found = maps.pairs.all(limits::PAIRS)?;
        let now = Instant::now();
        for (key, stats) in &found {
            let pair = self.pairs.entry(*key).or_insert_with(|| match self.pairs_read {
                // The pair is new since the last reading: all of its counts are too.
                Some(read) => PairCounters::new(PairStats::default(), read),
                None => PairCounters::new(*stats, now),
            });
            pair.preexisting = self.preexisting.get(key).copied().unwrap_or_default();
            pair.offloaded = self.offloaded.get(key).copied().unwrap_or_default();
            pair.observe(*stats, now, self.start);
        }
        if self.pairs.len() > found.len() {
            self.pairs.retain(|_, pair| pair.read == now);
        }
        self.pairs_read = Some(now);
        self.losses = maps.losses.get(&0)?.unwrap_or_default();
        Ok(())
    }

    /// Reads the numbers of connections that are older than the programs. Call it after they changed.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be read.
    pub(in crate::agent) fn read_preexisting(&mut self, maps: &Maps) -> io::Result<()> {
        self.preexisting = maps.preexisting.all(limits::PAIRS)?.into_iter().collect();
        Ok(())
    }

    /// Counts silent responses among the HTTP connections, and connections that RDMA has taken over
    /// among all connections.
    ///
    /// # Errors
    /// The kernel's, if a map cannot be read.
    pub(in crate::agent) fn sweep(
        &mut self,
        maps: &Maps,
        offloaded: &IwarpConnections,
    ) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let streams = maps.streams.all(limits::STREAMS)?;
        self.streams = streams.len();
        self.silent.clear();
        for (_, stream) in &streams {
            if is_silent(stream, now, self.response_idle_timeout) {
                *self.silent.entry(stream.pod).or_default() += 1;
            }
        }
        let connections = maps.connections.all(limits::CONNECTIONS)?;
        self.connections = connections.len();
        self.offloaded.clear();
        for (flow, connection) in &connections {
            if offloaded.contains(flow, connection, now) {
                *self.offloaded.entry(connection.pair).or_default() += 1;
            }
        }
        Ok(())
    }
}

fn is_silent(stream: &HttpStream, now: Duration, window: Duration) -> bool {
    let ends_with_connection = stream.phase == http::BODY && stream.flags & http::ENDLESS != 0;
    ends_with_connection && now.saturating_sub(Duration::from_nanos(stream.last_ns)) > window
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_between_two_full_readings_are_in_the_second() {
        let start = Instant::now();
        let mut pod = PodCounters::new(start);
        let asked = |started| PodHttp { started, ..PodHttp::default() };
        let window = |pod: &PodCounters| Arc::clone(&pod.window.newest().expect("a reading").1);
        pod.observe(asked(0), PodTraffic::default(), 0, Duration::ZERO);
        let first = window(&pod);
        pod.observe(asked(0), PodTraffic::default(), 0, STEP);
        assert!(Arc::ptr_eq(&first, &window(&pod)), "nothing was counted");
        assert!(pod.observe_requests(asked(3), start), "the requests changed");
        assert!(!pod.observe_requests(asked(3), start));
        assert_eq!(pod.in_flight(), 3);
        pod.observe(asked(3), PodTraffic::default(), 0, 2 * STEP);
        assert_eq!((first.started, window(&pod).started), (0, 3));
        assert!(pod.window.rates().requests > 0.0);
    }

    #[test]
    fn a_pod_of_which_nothing_was_seen_is_not_seen() {
        let mut sampler = Sampler::new(Duration::ZERO);
        sampler.pods.insert(1, PodCounters::new(Instant::now()));
        assert!(sampler.seen(1).is_none(), "no packet and no payload");
        let pod = sampler.pods.get_mut(&1).expect("the pod");
        pod.traffic = PodTraffic { socket_rx_payload: 1, ..PodTraffic::default() };
        assert!(sampler.seen(1).is_some());
        sampler.unseen.insert(1);
        assert!(sampler.seen(1).is_none());
    }
}
