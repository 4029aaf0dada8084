//! What happened in the last moment, pod by pod and pair by pair, as the load frames tell it.

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

use super::kv::{Kv, Moves, PodKv};
use super::links::{LinkUse, Ways};
use super::loads::Names;
use super::pairs::{
    PairCounters, PairGrowth, RATE_BYTES, RATE_US, RETRANSMITS, RTT_US, RTTS, RX, TX,
};
use super::rdma::report::with_rdma;
use super::registry::Entry;
use super::sampler::{PodCounters, Sampler};

/// SampledRates of frames are over so long: short enough to follow at once, long enough to be rates.
const SPAN: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(20);
/// What a request costs beside its bytes, in bytes: a TTFT is compared by the bytes it was for.
const REQUEST_BYTES: f64 = 8192.0;
/// Payload of a segment, for the part of segments that were sent again.
const SEGMENT_BYTES: f64 = 1448.0;

#[derive(Debug)]
struct PodRecent {
    window: ReadingWindow,
    /// Answers begun, and the bytes of their requests.
    answered: CounterWindow<2>,
    ttft: Baseline,
    itl: Baseline,
    /// Payload that came on ports of KV cache.
    arrived: CounterWindow<1>,
    /// When a stream last said something, and how much all had said then.
    said: (Duration, u64),
    read: Duration,
    rates: SampledRates,
}

/// The last moment of everything that is read.
#[derive(Debug)]
pub(super) struct Recent {
    start: Instant,
    pods: HashMap<u32, PodRecent>,
    /// What the pairs moved when they were read last, and what that says of KV cache.
    moves: BTreeMap<PairKey, Moves>,
    pub(super) kv: Kv,
}

impl Default for Recent {
    fn default() -> Recent {
        let (pods, moves, kv) = (HashMap::new(), BTreeMap::new(), Kv::default());
        Recent { start: Instant::now(), pods, moves, kv }
    }
}

impl Recent {
    /// Takes in what the sampler read of the pods.
    pub(super) fn read_pods(&mut self, sampler: &Sampler) {
        for (id, counters) in &sampler.pods {
            let at = counters.read.saturating_duration_since(self.start);
            let Some((_, reading)) = counters.window.newest() else { continue };
            let pod = self.pods.entry(*id).or_insert_with(|| PodRecent::new(at));
            pod.hear(&counters.http, at);
            pod.window.push(at, Arc::clone(reading));
            pod.answered.push(at, [counters.http.answered, counters.http.answered_bytes]);
            pod.arrived.push(at, [counters.traffic.rx_kv_payload]);
            pod.learn(at);
        }
        if self.pods.len() > sampler.pods.len() {
            self.pods.retain(|id, _| sampler.pods.contains_key(id));
        }
    }

    /// Takes in what the sampler read of these pods' requests alone.
    pub(super) fn read_requests(&mut self, ids: &[u32], sampler: &Sampler) {
        for id in ids {
            let (counters, pod) = (sampler.pods.get(id), self.pods.get_mut(id));
            if let Some((counters, pod)) = counters.zip(pod) {
                pod.hear(&counters.http, counters.counted.saturating_duration_since(self.start));
            }
        }
    }

    /// Takes in what the sampler read of the pairs, after the pods.
    pub(super) fn read_pairs(&mut self, sampler: &Sampler) {
        let used = sampler.pairs.iter().filter(|(_, counters)| counters.is_used());
        self.moves = used.map(|(key, counters)| (*key, moves(counters))).collect();
        self.kv = Kv::of(&self.moves, |id| {
            sampler.pods.get(&id).filter(|pod| pod.traffic.rx_packets > 0)?;
            let arrived = self.pods.get(&id).and_then(|pod| pod.arrived.growth());
            Some(arrived.map_or(0.0, |growth| growth.per_second(0)))
        });
    }

    /// Everything as a frame tells it.
    pub(super) fn report(
        &self,
        sampler: &Sampler,
        names: &Names,
        ways: &Ways<'_>,
    ) -> frame::LoadReport {
        let now = Instant::now();
        let pods = sampler
            .pods
            .iter()
            .filter_map(|(id, counters)| self.pod(names.entry(*id)?, counters, ways, now));
        frame::LoadReport {
            node: names.node.clone().unwrap_or_default(),
            pods: pods.collect(),
            pairs: pair_records(sampler, &self.kv, names, now),
            devices: ways.links.records(now),
        }
    }

    /// The same of these pods alone: their requests as of now, the rest as it was read last.
    pub(super) fn records(
        &self,
        ids: &[u32],
        sampler: &Sampler,
        names: &Names,
        ways: &Ways<'_>,
    ) -> Vec<PodRecord> {
        let now = Instant::now();
        let record = |id| self.pod(names.entry(id)?, sampler.pods.get(&id)?, ways, now);
        ids.iter().filter_map(|id| record(*id)).collect()
    }

    fn pod(
        &self,
        entry: &Entry,
        counters: &PodCounters,
        ways: &Ways<'_>,
        now: Instant,
    ) -> Option<PodRecord> {
        let (kv, link) = (self.kv.of_pod(entry.id), ways.of_pod(entry));
        let http = &counters.http;
        let rates = self.pods.get(&entry.id).map(|pod| pod.rates).unwrap_or_default();
        let age = now.saturating_duration_since(counters.counted);
        let streaming = http.streaming();
        let silence = self
            .pods
            .get(&entry.id)
            .filter(|_| streaming > 0)
            .map(|pod| now.saturating_duration_since(self.start + pod.said.0));
        let known = |value: Option<f64>| Measured::from(value.map(|value| value as f32));
        let record = PodRecord {
            pod: pod_id(&entry.placed.pod.uid),
            age_us: micros(age),
            in_flight: count(counters.in_flight()),
            waiting: count(http.waiting()),
            streaming: count(streaming),
            waiting_bytes: http.waiting_bytes(),
            asked_bytes: http.asked_bytes,
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
            score: Measured::exact(self.score(entry.id, counters, kv, link).total() as f32),
        };
        Some(with_rdma(record, entry.placed.pod.role, ways.rdma(entry)))
    }

    /// The load score of a pod, with its terms.
    pub(super) fn score_of(&self, entry: &Entry, counters: &PodCounters, ways: &Ways<'_>) -> Score {
        self.score(entry.id, counters, self.kv.of_pod(entry.id), ways.of_pod(entry))
    }

    fn score(&self, id: u32, counters: &PodCounters, kv: PodKv, link: Option<LinkUse>) -> Score {
        let pod = self.pods.get(&id);
        let sent = pod.map_or(0.0, |pod| pod.rates.tx_bytes) / SEGMENT_BYTES;
        Score::of(&ScoreInputs {
            in_flight: counters.in_flight(),
            slowdown: pod.and_then(PodRecent::slowdown),
            link_use: link.map(|link| link.tx.max(link.rx) / link.speed),
            loss: (sent > 0.0).then(|| kv.retransmits / sent),
        })
    }
}

impl PodRecent {
    fn new(at: Duration) -> PodRecent {
        PodRecent {
            window: ReadingWindow::new(SPAN, STEP),
            answered: CounterWindow::new(SPAN, STEP),
            arrived: CounterWindow::new(SPAN, STEP),
            ttft: Baseline::default(),
            itl: Baseline::default(),
            said: (at, 0),
            read: at,
            rates: SampledRates::default(),
        }
    }

    /// Whether a stream said something.
    fn hear(&mut self, http: &PodHttp, at: Duration) {
        let said = http.itl_samples + http.streams_started;
        if said != self.said.1 {
            self.said = (at, said);
        }
    }

    fn learn(&mut self, at: Duration) {
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

    /// The TTFT as that of an empty request, so that long prompts do not look like trouble.
    fn ttft_by_size(&self) -> Option<Duration> {
        let ttft = self.rates.ttft?;
        let [answers, bytes] = self.answered.growth()?.deltas;
        let bytes = if answers > 0 { bytes as f64 / answers as f64 } else { 0.0 };
        Some(ttft.mul_f64(REQUEST_BYTES / (REQUEST_BYTES + bytes)))
    }

    /// How many times longer than at ease its tokens take, or its first ones where it streams none.
    fn slowdown(&self) -> Option<f64> {
        match self.rates.itl {
            Some(itl) => self.itl.slowdown(itl),
            None => self.ttft.slowdown(self.ttft_by_size()?),
        }
    }
}

fn moves(counters: &PairCounters) -> Moves {
    let growth = counters.growth();
    let rate = |counter| growth.map_or(0.0, |growth| growth.per_second(counter));
    Moves {
        sent: counters.stats.tx_bytes,
        tx: rate(TX),
        rx: rate(RX),
        retransmits: rate(RETRANSMITS),
        open: counters.open(),
        seeded: counters.seeded,
    }
}

fn pair_records(sampler: &Sampler, kv: &Kv, names: &Names, now: Instant) -> Vec<PairRecord> {
    let id = |id: u32| names.entry(id).map(|entry| pod_id(&entry.placed.pod.uid));
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
        // More than a frame has room for: those that move most.
        records.sort_by(|a, b| moved(b).total_cmp(&moved(a)));
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

fn moved(record: &PairRecord) -> f32 {
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

/// Streams that have fallen silent have no gap that ended: the one that lasts counts.
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

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_streams_are_as_slow_as_the_silence() {
        let itl = LatencyRecord { mean_us: 20_000.0, p99_us: 30_000.0, samples: 5 };
        assert_eq!(with_silence(itl.clone(), None), itl);
        assert_eq!(with_silence(itl.clone(), Some(Duration::from_millis(10))), itl);
        let stuck = with_silence(itl, Some(Duration::from_millis(400)));
        assert_eq!((stuck.mean_us, stuck.samples), (400_000.0, 5));
        let never = with_silence(LatencyRecord::default(), Some(Duration::from_millis(50)));
        assert_eq!((never.mean_us, never.samples), (50_000.0, 1));
    }

    #[test]
    fn a_pair_has_speed_only_of_what_moved() {
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
