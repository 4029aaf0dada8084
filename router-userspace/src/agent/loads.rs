//! What `/v1/loads` answers: a snapshot per pod, per pair and per device, each with its age.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use router_common::flow::{
    CLASS_BOOTSTRAP, CLASS_ENGINE, CLASS_KV, CLASS_KV_CONTROL, Losses, PairKey,
};
use router_core::fleet::Role;
use router_core::provenance::Measured;
use router_core::sample;
use router_core::score::Score;
use serde::Serialize;

use super::attach::Device;
use super::described::Learned;
use super::kv::Kv;
use super::pairs::PairCounters;
use super::queue_pairs::RoceLoad;
use super::rdma::report::RdmaLoad;
use super::registry::Entry;
use super::sampler::{PodCounters, Sampler};

/// The whole snapshot.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Loads {
    pub(super) node: Option<String>,
    pub(super) pods: Vec<PodLoad>,
    pub(super) pairs: Vec<PairLoad>,
    /// KV cache between prefills and decodes, each byte once.
    pub(super) kv: Vec<KvLoad>,
    /// RoCEv2 that came over uplinks.
    pub(super) roce: RoceLoad,
    /// Ports that are known from the engines and the node's processes alone.
    pub(super) learned: Vec<LearnedPorts>,
    pub(super) devices: Vec<Device>,
    pub(super) rdma: RdmaLoad,
    /// What cannot be measured here, and why.
    pub(super) missing: Vec<String>,
    /// Details that found no room in a map.
    pub(super) lost: Lost,
    /// Entries of the maps that grow with connections.
    pub(super) connections: usize,
    pub(super) streams: usize,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct PodLoad {
    pub(super) pod: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) address: String,
    pub(super) role: Option<Role>,
    /// Requests since the pod is known.
    pub(super) started: u64,
    pub(super) answered: u64,
    pub(super) finished: u64,
    pub(super) aborted: u64,
    pub(super) reopened: u64,
    /// Now.
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
    pub(super) streaming: u64,
    /// Of the requests whose answer has not begun, their heads included.
    pub(super) waiting_bytes: u64,
    /// Since the pod is known.
    pub(super) ttft: Latency,
    pub(super) itl: Latency,
    pub(super) duration: Latency,
    /// Packets on the pod's interface, retransmits included.
    pub(super) rx: Traffic,
    pub(super) tx: Traffic,
    /// Of the received payload, what came on ports of KV cache.
    pub(super) rx_kv_payload: u64,
    pub(super) uplink_packets: u64,
    pub(super) uplink_bytes: u64,
    /// KV cache that it sends and receives a second, over the last fifth of one; not what RDMA moves.
    pub(super) kv_tx_bytes_per_second: f64,
    pub(super) kv_rx_bytes_per_second: Measured<f32>,
    /// Over the last second.
    pub(super) rates: PodRates,
    /// Seconds to finish what is in flight at the present rate; absent while unknown.
    pub(super) drain_s: Option<f64>,
    /// How busy the pod is, 0 idle to 1 saturated, and what that is made of.
    pub(super) score: f64,
    pub(super) score_terms: Score,
    /// Of all but the requests, which are read more often.
    pub(super) age_ms: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) sum_ms: f64,
    pub(super) samples: u64,
    pub(super) mean_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Traffic {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) payload: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PodRates {
    pub(super) requests: f64,
    pub(super) answers: f64,
    pub(super) rx_bytes: f64,
    pub(super) tx_bytes: f64,
    pub(super) ttft_ms: Option<f64>,
    pub ttft_p99_ms: Option<f64>,
    pub(super) itl_ms: Option<f64>,
    pub itl_p99_ms: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct PairLoad {
    pub(super) pod: Arc<str>,
    /// Absent for everyone who is not a known pod.
    pub(super) peer: Option<Arc<str>>,
    pub(super) class: &'static str,
    pub(super) opened: u64,
    pub(super) established: u64,
    pub(super) closed: u64,
    pub(super) failed: u64,
    /// Older than the programs: their bytes are not in the counters.
    pub(super) seeded: u64,
    pub(super) open: u64,
    /// Further open ones, which RDMA has taken over (iWARP): they stay silent, and are no load.
    pub(super) rdma: u64,
    pub(super) tx_bytes: u64,
    pub(super) rx_bytes: u64,
    pub(super) retransmits: u64,
    pub(super) rtt_us: Option<u64>,
    pub(super) tx_bytes_per_second: f64,
    /// Of KV cache it is live; else that of a socket which only receives is 0 until its state changes.
    pub(super) rx_bytes_per_second: Measured<f64>,
    pub(super) age_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct KvLoad {
    pub(super) prefill: Arc<str>,
    pub(super) decode: Arc<str>,
    pub(super) bytes: u64,
    pub(super) bytes_per_second: Measured<f64>,
    /// The end that counted: at `prefill` both are live; at `decode` the rate is, by an estimate, and
    /// the bytes are complete at the end of a connection.
    pub(super) counted_at: &'static str,
}

/// Ports of a pod that its manifest does not name.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LearnedPorts {
    pub(super) pod: Arc<str>,
    /// Where its ranks take control messages, by its bootstrap server.
    pub(super) controls: Vec<SocketAddr>,
    /// Where its processes listen on the host's network.
    pub(super) listening: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Lost {
    pub(super) connections: u64,
    pub(super) pairs: u64,
    pub(super) streams: u64,
    pub(super) queue_pairs: u64,
    pub(super) unreadable: u64,
}

impl From<Losses> for Lost {
    fn from(losses: Losses) -> Lost {
        let Losses { connections, pairs, streams, queue_pairs, unreadable } = losses;
        Lost { connections, pairs, streams, queue_pairs, unreadable }
    }
}

/// What names the counters.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By id.
    pub(super) entries: Vec<Entry>,
    pub(super) learned: Learned,
    pub(super) devices: Vec<Device>,
    pub(super) missing: Vec<String>,
    pub(super) node: Option<String>,
}

impl Names {
    pub(super) fn entry(&self, id: u32) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&id, |entry| entry.id);
        at.ok().and_then(|at| self.entries.get(at))
    }
}

/// Names what the sampler read.
pub(super) fn snapshot(
    sampler: &Sampler,
    names: &Names,
    kv_rates: &Kv,
    score: impl Fn(&Entry, &PodCounters) -> Score,
) -> Loads {
    let now = Instant::now();
    let pods = sampler.pods.iter().filter_map(|(id, counters)| {
        let entry = names.entry(*id)?;
        Some(pod_load(entry, counters, kv_rates, score(entry, counters), now))
    });
    let mut pairs: Vec<PairLoad> = Vec::new();
    let mut kv: HashMap<(u32, u32), KvLoad> = HashMap::new();
    for (key, counters) in &sampler.pairs {
        let Some(pod) = names.entry(key.pod) else { continue };
        let peer = names.entry(key.peer);
        if counters.is_used() {
            pairs.push(pair_load(key, pod, peer, counters, kv_rates, now));
        }
        if let Some(peer) = peer.filter(|_| key.class == CLASS_KV) {
            count_kv(&mut kv, pod, peer, counters, kv_rates.received(key));
        }
    }
    let mut kv: Vec<KvLoad> = kv.into_values().collect();
    kv.sort_by(|a, b| (&a.prefill, &a.decode).cmp(&(&b.prefill, &b.decode)));
    Loads {
        node: names.node.clone(),
        pods: pods.collect(),
        pairs,
        kv,
        roce: sampler.queue_pairs.load(names.entries.iter(), now),
        learned: names.entries.iter().filter_map(|entry| learned(entry, &names.learned)).collect(),
        devices: names.devices.clone(),
        rdma: RdmaLoad::default(),
        missing: names.missing.clone(),
        lost: sampler.losses.into(),
        connections: sampler.connections,
        streams: sampler.streams,
    }
}

fn learned(entry: &Entry, learned: &Learned) -> Option<LearnedPorts> {
    let known = &entry.placed.pod;
    let controls = learned.controls.get(&known.uid).into_iter().flatten().copied();
    let listening = learned.listening.get(&known.uid).into_iter().flatten().copied();
    let ports = LearnedPorts {
        pod: Arc::clone(&known.name),
        controls: controls.collect(),
        listening: listening.collect(),
    };
    (!ports.controls.is_empty() || !ports.listening.is_empty()).then_some(ports)
}

/// Both ends of a pair on one node count the same bytes: the sender's count is the live one.
fn count_kv(
    kv: &mut HashMap<(u32, u32), KvLoad>,
    pod: &Entry,
    peer: &Entry,
    counters: &PairCounters,
    received: Measured<f32>,
) {
    let sends = pod.placed.pod.role == Some(Role::Prefill);
    let (prefill, decode) = if sends { (pod, peer) } else { (peer, pod) };
    let (bytes, bytes_per_second) = match sends {
        true => (counters.stats.tx_bytes, Measured::exact(counters.tx_per_second)),
        false => (counters.stats.rx_bytes, received.map(f64::from)),
    };
    let load = KvLoad {
        prefill: Arc::clone(&prefill.placed.pod.name),
        decode: Arc::clone(&decode.placed.pod.name),
        bytes,
        bytes_per_second,
        counted_at: if sends { "prefill" } else { "decode" },
    };
    let known = kv.entry((prefill.id, decode.id)).or_insert_with(|| load.clone());
    if sends {
        *known = load;
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn latency(ns: u64, samples: u64) -> Latency {
    let sum_ms = ns as f64 / 1e6;
    Latency { sum_ms, samples, mean_ms: (samples > 0).then(|| sum_ms / samples as f64) }
}

fn pod_load(entry: &Entry, counters: &PodCounters, kv: &Kv, score: Score, now: Instant) -> PodLoad {
    let (http, traffic) = (&counters.http, &counters.traffic);
    let known = &entry.placed.pod;
    let rates = counters.window.rates();
    let kv = kv.of_pod(entry.id);
    PodLoad {
        pod: Arc::clone(&known.name),
        uid: Arc::clone(&known.uid),
        address: known.address.to_string(),
        role: known.role,
        started: http.started,
        answered: http.answered,
        finished: http.finished,
        aborted: http.aborted,
        reopened: http.reopened,
        in_flight: counters.in_flight(),
        waiting: http.waiting(),
        waiting_bytes: http.waiting_bytes(),
        streaming: http.streaming(),
        ttft: latency(http.ttft_ns_sum, http.ttft_samples),
        itl: latency(http.itl_ns_sum, http.itl_samples),
        duration: latency(http.duration_ns_sum, http.duration_samples),
        rx: Traffic {
            packets: traffic.rx_packets,
            bytes: traffic.rx_bytes,
            payload: traffic.rx_payload,
        },
        tx: Traffic {
            packets: traffic.tx_packets,
            bytes: traffic.tx_bytes,
            payload: traffic.tx_payload,
        },
        uplink_packets: traffic.uplink_packets,
        rx_kv_payload: traffic.rx_kv_payload,
        uplink_bytes: traffic.uplink_bytes,
        kv_tx_bytes_per_second: kv.tx,
        kv_rx_bytes_per_second: kv.rx,
        rates: PodRates {
            requests: rates.requests,
            answers: rates.answers,
            rx_bytes: rates.rx_bytes,
            tx_bytes: rates.tx_bytes,
            ttft_ms: rates.ttft.map(milliseconds),
            ttft_p99_ms: rates.ttft_p99.map(milliseconds),
            itl_ms: rates.itl.map(milliseconds),
            itl_p99_ms: rates.itl_p99.map(milliseconds),
        },
        score: score.total(),
        score_terms: score,
        drain_s: sample::drain_seconds(counters.in_flight(), &rates),
        age_ms: milliseconds(now - counters.read),
    }
}

fn pair_load(
    key: &PairKey,
    pod: &Entry,
    peer: Option<&Entry>,
    counters: &PairCounters,
    kv: &Kv,
    now: Instant,
) -> PairLoad {
    let stats = &counters.stats;
    let rx_bytes_per_second = match key.class {
        CLASS_KV => kv.received(key).map(f64::from),
        _ => Measured::exact(counters.rx_per_second),
    };
    PairLoad {
        pod: Arc::clone(&pod.placed.pod.name),
        peer: peer.map(|peer| Arc::clone(&peer.placed.pod.name)),
        class: match key.class {
            CLASS_ENGINE => "engine",
            CLASS_BOOTSTRAP => "bootstrap",
            CLASS_KV => "kv",
            CLASS_KV_CONTROL => "kv_control",
            _ => "other",
        },
        opened: stats.opened,
        established: stats.established,
        closed: stats.closed,
        failed: stats.failed,
        seeded: counters.seeded,
        open: counters.open().saturating_sub(counters.taken),
        rdma: counters.taken,
        tx_bytes: stats.tx_bytes,
        rx_bytes: stats.rx_bytes,
        retransmits: stats.retransmits,
        rtt_us: stats.rtt_us_sum.checked_div(stats.rtt_samples),
        tx_bytes_per_second: counters.tx_per_second,
        rx_bytes_per_second,
        age_ms: milliseconds(now - counters.read),
    }
}
