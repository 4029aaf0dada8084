//! Rates and latencies of each pod and pair over a short window, as load frames carry them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use router_common::flow::{
    CLASS_BOOTSTRAP, CLASS_ENGINE, CLASS_KV, CLASS_KV_CONTROL, PairKey, PodHttp,
};
use router_core::counter_window::CounterWindow;
use router_core::frame::{self, LatencyRecord, PairRecord, PodRecord, pod_id};
use router_core::provenance::Measured;
use router_core::sample::{ReadingWindow, SampledRates};
use router_core::score::{Baseline, Score, ScoreInputs};

use crate::agent::counters::kv::{KvRates, PairRates, PodKv};
use crate::agent::counters::links::PodLinks;
use crate::agent::counters::pairs::{
    PairCounters, PairGrowth, RATE_BYTES, RATE_US, RETRANSMITS, RTT_US, RTTS, RX, TX,
};
use crate::agent::counters::sampler::{PodCounters, Sampler};
use crate::agent::host::link_use::LinkUse;
use crate::agent::node_info::NodeInfo;
use crate::agent::pods::registered_pod::RegisteredPod;
use crate::agent::rdma::report::with_rdma;
use crate::clock::micros;

/// Window of the rates in load frames: short enough to show a change at once, long enough to be stable.
const SPAN: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);
/// Fixed cost of a request, in bytes. A TTFT is scaled by the request's bytes before it is compared.
const REQUEST_BYTES: f64 = 8192.0;
/// Payload of a TCP segment in bytes, to turn bytes into the share of segments sent again.
const SEGMENT_BYTES: f64 = 1448.0;

#[derive(Debug)]
struct PodStats {
    window: ReadingWindow,
    /// Responses that began, and the bytes of their requests.
    answered: CounterWindow<2>,
    ttft: Baseline,
    itl: Baseline,
    /// Payload that arrived on KV ports.
    kv_arrived: CounterWindow<1>,
    /// When a stream last sent something, and the number of segments of all streams at that time.
    last_output: (Duration, u64),
    read: Duration,
    rates: SampledRates,
}

/// The rolling statistics of every pod and pair.
#[derive(Debug)]
pub(in crate::agent) struct RollingStats {
    start: Instant,
    pods: HashMap<u32, PodStats>,
    pairs: BTreeMap<PairKey, PairRates>,
    pub(in crate::agent) kv: KvRates,
}

impl Default for RollingStats {
    fn default() -> RollingStats {
        let (pods, pairs, kv) = (HashMap::new(), BTreeMap::new(), KvRates::default());
        RollingStats { start: Instant::now(), pods, pairs, kv }
    }
}

impl RollingStats {
    /// Adds the latest counters of the pods.
    pub(in crate::agent) fn observe_pods(&mut self, sampler: &Sampler) {
        for (id, counters) in &sampler.pods {
            let at = counters.read.saturating_duration_since(self.start);
            let Some((_, reading)) = counters.window.newest() else { continue };
            let pod = self.pods.entry(*id).or_insert_with(|| PodStats::new(at));
            pod.observe_streams(&counters.http, at);
            pod.window.push(at, Arc::clone(reading));
            pod.answered.push(at, [counters.http.answered, counters.http.answered_request_bytes]);
            pod.kv_arrived.push(at, [counters.traffic.rx_kv_payload]);
            pod.update_rates(at);
        }
        if self.pods.len() > sampler.pods.len() {
            self.pods.retain(|id, _| sampler.pods.contains_key(id));
        }
    }

    /// Adds the latest request counts of the pods `ids`.
    pub(in crate::agent) fn observe_requests(&mut self, ids: &[u32], sampler: &Sampler) {
        for id in ids {
            let (counters, pod) = (sampler.pods.get(id), self.pods.get_mut(id));
            if let Some((counters, pod)) = counters.zip(pod) {
                pod.observe_streams(
                    &counters.http,
                    counters.requests_read.saturating_duration_since(self.start),
                );
            }
        }
    }

    /// Adds the latest counters of the pairs. Call it after [`RollingStats::observe_pods`].
    pub(in crate::agent) fn observe_pairs(&mut self, sampler: &Sampler) {
        let used = sampler.pairs.iter().filter(|(_, counters)| counters.is_used());
        self.pairs = used.map(|(key, counters)| (*key, pair_rates(counters))).collect();
        self.kv = KvRates::new(&self.pairs, |id| {
            sampler.seen(id).filter(|pod| !pod.by_interface || pod.traffic.rx_packets > 0)?;
            let arrived = self.pods.get(&id).and_then(|pod| pod.kv_arrived.growth());
            Some(arrived.map_or(0.0, |growth| growth.per_second(0)))
        });
    }

    /// The report that load frames are made of.
    pub(in crate::agent) fn report(
        &self,
        sampler: &Sampler,
        node: &NodeInfo,
        links: &PodLinks<'_>,
    ) -> frame::LoadReport {
        let now = Instant::now();
        let pods = sampler
            .pods
            .keys()
            .filter_map(|id| self.pod(node.pod(*id)?, sampler.seen(*id)?, links, now));
        frame::LoadReport {
            node: node.name.clone().unwrap_or_default(),
            pods: pods.collect(),
            pairs: pair_records(sampler, &self.kv, node, now),
            devices: links.links.records(now),
        }
    }

    /// The records of the pods `ids`: their latest request counts, and rates of the last full reading.
    pub(in crate::agent) fn records(
        &self,
        ids: &[u32],
        sampler: &Sampler,
        node: &NodeInfo,
        links: &PodLinks<'_>,
    ) -> Vec<PodRecord> {
        let now = Instant::now();
        let record = |id| self.pod(node.pod(id)?, sampler.seen(id)?, links, now);
        ids.iter().filter_map(|id| record(*id)).collect()
    }

    fn pod(
        &self,
        pod: &RegisteredPod,
        counters: &PodCounters,
        links: &PodLinks<'_>,
        now: Instant,
    ) -> Option<PodRecord> {
        let (kv, link) = (self.kv.of_pod(pod.id), links.of_pod(pod));
        let http = &counters.http;
        let rates = self.pods.get(&pod.id).map(|pod| pod.rates).unwrap_or_default();
        let age = now.saturating_duration_since(counters.requests_read);
        let streaming = http.streaming();
        let silence = self
            .pods
            .get(&pod.id)
            .filter(|_| streaming > 0)
            .map(|pod| now.saturating_duration_since(self.start + pod.last_output.0));
        let known = |value: Option<f64>| Measured::from(value.map(|value| value as f32));
        let record = PodRecord {
            pod: pod_id(&pod.placed.pod.uid),
            age_us: micros(age),
            in_flight: count(counters.in_flight()),
            waiting: count(http.waiting()),
            streaming: count(streaming),
            waiting_bytes: http.waiting_bytes(),
            request_bytes: http.request_bytes,
            kv_tx_bytes: kv.sent,
            ttft: latency(rates.ttft, rates.ttft_p99, rates.ttft_samples),
            itl: with_silence(latency(rates.itl, rates.itl_p99, rates.itl_samples), silence),
            tx_bytes_per_s: Measured::exact(rates.tx_bytes as f32),
            rx_bytes_per_s: Measured::exact(rates.rx_bytes as f32),
            retransmits_per_s: Measured::exact(kv.retransmits as f32),
            kv_tx_bytes_per_s: Measured::exact(kv.tx as f32),
            kv_rx_bytes_per_s: kv.rx,
            rdma_tx_bytes_per_s: Measured::unknown(),
            rdma_rx_bytes_per_s: Measured::unknown(),
            link_bytes_per_s: known(link.map(|link| link.speed)),
            link_tx_used_bytes_per_s: known(link.map(|link| link.tx)),
            link_rx_used_bytes_per_s: known(link.map(|link| link.rx)),
            score: Measured::exact(self.score(pod.id, counters, kv, link).total() as f32),
        };
        Some(with_rdma(record, pod.placed.pod.role, links.rdma(pod)))
    }

    /// The load score of a pod, with its terms.
    pub(in crate::agent) fn score_of(
        &self,
        pod: &RegisteredPod,
        counters: &PodCounters,
        links: &PodLinks<'_>,
    ) -> Score {
        self.score(pod.id, counters, self.kv.of_pod(pod.id), links.of_pod(pod))
    }

    fn score(&self, id: u32, counters: &PodCounters, kv: PodKv, link: Option<LinkUse>) -> Score {
        let pod = self.pods.get(&id);
        let sent = pod.map_or(0.0, |pod| pod.rates.tx_bytes) / SEGMENT_BYTES;
        Score::of(&ScoreInputs {
            in_flight: counters.in_flight(),
            slowdown: pod.and_then(PodStats::slowdown),
            link_use: link.map(|link| link.tx.max(link.rx) / link.speed),
            loss: (sent > 0.0).then(|| kv.retransmits / sent),
        })
    }
}

impl PodStats {
    fn new(at: Duration) -> PodStats {
        PodStats {
            window: ReadingWindow::new(SPAN, STEP),
            answered: CounterWindow::new(SPAN, STEP),
            kv_arrived: CounterWindow::new(SPAN, STEP),
            ttft: Baseline::default(),
            itl: Baseline::default(),
            last_output: (at, 0),
            read: at,
            rates: SampledRates::default(),
        }
    }

    /// Notes the time if a stream sent something.
    fn observe_streams(&mut self, http: &PodHttp, at: Duration) {
        let segments = http.itl_samples + http.streams_started;
        if segments != self.last_output.1 {
            self.last_output = (at, segments);
        }
    }

    fn update_rates(&mut self, at: Duration) {
        let elapsed = at.saturating_sub(self.read);
        self.read = at;
        self.rates = self.window.rates();
        if let Some(itl) = self.rates.itl {
            self.itl.observe(itl, elapsed);
        }
        if let Some(ttft) = self.ttft_by_size() {
            self.ttft.observe(ttft, elapsed);
        }
    }

    /// The TTFT scaled to that of an empty request, so that long prompts do not look slow.
    fn ttft_by_size(&self) -> Option<Duration> {
        let ttft = self.rates.ttft?;
        let [answers, bytes] = self.answered.growth()?.deltas;
        let bytes = if answers > 0 { bytes as f64 / answers as f64 } else { 0.0 };
        Some(ttft.mul_f64(REQUEST_BYTES / (REQUEST_BYTES + bytes)))
    }

    /// The ratio of its inter-token latency to its baseline; of its TTFT if it streams nothing.
    fn slowdown(&self) -> Option<f64> {
        match self.rates.itl {
            Some(itl) => self.itl.slowdown(itl),
            None => self.ttft.slowdown(self.ttft_by_size()?),
        }
    }
}

fn pair_rates(counters: &PairCounters) -> PairRates {
    let growth = counters.growth();
    let rate = |counter| growth.map_or(0.0, |growth| growth.per_second(counter));
    PairRates {
        sent: counters.stats.tx_bytes,
        tx: rate(TX),
        rx: rate(RX),
        retransmits: rate(RETRANSMITS),
        open: counters.open(),
        preexisting: counters.preexisting,
    }
}

fn pair_records(sampler: &Sampler, kv: &KvRates, node: &NodeInfo, now: Instant) -> Vec<PairRecord> {
    let id = |id: u32| node.pod(id).map(|pod| pod_id(&pod.placed.pod.uid));
    let mut records = Vec::new();
    for (key, counters) in sampler.pairs.iter().filter(|(_, counters)| counters.is_used()) {
        let Some(pod) = id(key.pod) else { continue };
        let peer = id(key.peer).unwrap_or_default();
        let named = frame::PairId { pod, peer, class: class(key.class) };
        let mut record = pair(named, counters, counters.growth(), now);
        if key.class == CLASS_KV {
            record.rx_bytes_per_s = kv.received(key).value().unwrap_or_default();
        }
        records.push(record);
    }
    if records.len() > frame::MAX_PAIRS {
        // A frame holds no more: keep the pairs that move most.
        records.sort_by(|a, b| bytes_per_second(b).total_cmp(&bytes_per_second(a)));
        records.truncate(frame::MAX_PAIRS);
    }
    records
}

fn pair(
    key: frame::PairId,
    counters: &PairCounters,
    growth: Option<PairGrowth>,
    now: Instant,
) -> PairRecord {
    let record = PairRecord {
        key,
        age_us: micros(now.saturating_duration_since(counters.read)),
        open: count(counters.open()),
        ..PairRecord::default()
    };
    let Some(growth) = growth else { return record };
    let ratio = |sum: usize, of: usize, times: f64| {
        let of = growth.deltas[of];
        Measured::from((of > 0).then(|| (growth.deltas[sum] as f64 / of as f64 * times) as f32))
    };
    PairRecord {
        tx_bytes_per_s: growth.per_second(TX) as f32,
        rx_bytes_per_s: growth.per_second(RX) as f32,
        retransmits_per_s: growth.per_second(RETRANSMITS) as f32,
        rtt_us: ratio(RTT_US, RTTS, 1.0),
        transfer_bytes_per_s: ratio(RATE_BYTES, RATE_US, 1e6),
        transfer_us: u32::try_from(growth.deltas[RATE_US]).unwrap_or(u32::MAX),
        ..record
    }
}

fn bytes_per_second(record: &PairRecord) -> f32 {
    record.tx_bytes_per_s + record.rx_bytes_per_s
}

fn class(class: u32) -> frame::Class {
    match class {
        CLASS_ENGINE => frame::Class::Engine,
        CLASS_BOOTSTRAP => frame::Class::Bootstrap,
        CLASS_KV => frame::Class::Kv,
        CLASS_KV_CONTROL => frame::Class::KvControl,
        _ => frame::Class::Other,
    }
}

fn latency(mean: Option<Duration>, p99: Option<Duration>, samples: u64) -> LatencyRecord {
    let us = |time: Option<Duration>| time.unwrap_or_default().as_secs_f32() * 1e6;
    LatencyRecord { mean_us: us(mean), p99_us: us(p99), samples: count(samples) }
}

/// A silent stream has no finished gap between segments, so the gap that lasts counts.
fn with_silence(itl: LatencyRecord, silence: Option<Duration>) -> LatencyRecord {
    let silence_us = silence.unwrap_or_default().as_secs_f32() * 1e6;
    if silence_us <= itl.mean_us {
        return itl;
    }
    LatencyRecord {
        mean_us: silence_us,
        p99_us: silence_us.max(itl.p99_us),
        samples: itl.samples.max(1),
    }
}

fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_of_silent_streams_is_their_silence() {
        let itl = LatencyRecord { mean_us: 20_000.0, p99_us: 30_000.0, samples: 5 };
        assert_eq!(with_silence(itl.clone(), None), itl);
        assert_eq!(with_silence(itl.clone(), Some(Duration::from_millis(10))), itl);
        let stuck = with_silence(itl, Some(Duration::from_millis(400)));
        assert_eq!((stuck.mean_us, stuck.samples), (400_000.0, 5));
        let never = with_silence(LatencyRecord::default(), Some(Duration::from_millis(50)));
        assert_eq!((never.mean_us, never.samples), (50_000.0, 1));
    }

    #[test]
    fn a_pair_has_a_transfer_speed_only_if_bytes_moved() {
        let growth = PairGrowth {
            deltas: [1_000_000, 0, 2, 3_000, 3, 800_000, 4_000],
            elapsed: Duration::from_millis(200),
        };
        let stats = router_common::flow::PairStats { established: 2, ..Default::default() };
        let counters = PairCounters::new(stats, Instant::now());
        let moving = pair(frame::PairId::default(), &counters, Some(growth), counters.read);
        assert_eq!(moving.tx_bytes_per_s, 5e6);
        assert_eq!(moving.rtt_us, Measured::exact(1_000.0));
        assert_eq!(
            (moving.transfer_bytes_per_s, moving.transfer_us),
            (Measured::exact(2e8), 4_000)
        );
        let idle = pair(frame::PairId::default(), &counters, None, counters.read);
        assert_eq!((idle.open, idle.rtt_us), (2, Measured::unknown()));
    }
}
