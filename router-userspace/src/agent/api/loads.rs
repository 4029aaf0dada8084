//! The answer to `/v1/loads`: a snapshot of each pod, pair and interface, each with its age.

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

use crate::agent::attachments::AttachedInterface;
use crate::agent::counters::kv::KvRates;
use crate::agent::counters::pairs::PairCounters;
use crate::agent::counters::queue_pairs::RoceLoad;
use crate::agent::counters::sampler::{PodCounters, Sampler};
use crate::agent::node_info::NodeInfo;
use crate::agent::pods::map_contents::LearnedPorts;
use crate::agent::pods::registered_pod::RegisteredPod;
use crate::agent::rdma::report::RdmaLoad;
use crate::agent::rooms::ControlCounts;

/// The whole snapshot.
#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::agent) struct Loads {
    pub(in crate::agent) node: Option<String>,
    pub(in crate::agent) pods: Vec<PodLoad>,
    pub(in crate::agent) pairs: Vec<PairLoad>,
    /// KV cache between prefills and decodes, each byte once.
    pub(in crate::agent) kv: Vec<KvLoad>,
    /// RoCEv2 that came over uplinks.
    pub(in crate::agent) roce: RoceLoad,
    /// Ports that no manifest names, read from the engines and the processes of the node.
    pub(in crate::agent) learned_ports: Vec<PodPorts>,
    /// Interfaces that programs are attached to.
    pub(in crate::agent) interfaces: Vec<AttachedInterface>,
    pub(in crate::agent) rdma: RdmaLoad,
    /// Control messages of KV transfers.
    pub(in crate::agent) control: ControlLoad,
    /// What cannot be measured on this node, and why.
    pub(in crate::agent) missing: Vec<String>,
    /// Details that did not fit into a map, and headers that cannot be parsed.
    pub(in crate::agent) lost: LossCounts,
    /// Number of TCP connections in the map.
    pub(in crate::agent) connections: usize,
    /// Number of HTTP connections in the map: those counted on interfaces, and those whose response has no
    /// known end.
    pub(in crate::agent) streams: usize,
}

/// The control messages that were read, and the transfers that they are about.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(in crate::agent) struct ControlLoad {
    #[serde(flatten)]
    pub(in crate::agent) counts: ControlCounts,
    /// Transfers that began and have not ended; one between two pods of this node counts at both.
    pub(in crate::agent) open_rooms: usize,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PodLoad {
    pub(in crate::agent) pod: Arc<str>,
    pub(in crate::agent) uid: Arc<str>,
    pub(in crate::agent) address: String,
    pub(in crate::agent) role: Option<Role>,
    /// Where requests are counted: `socket` or `interface`; null if the pod's sockets move what no program
    /// sees, so that its requests are unknown (`missing` names it).
    pub(in crate::agent) counted_at: Option<&'static str>,
    /// Requests since the pod is known, and what became of them.
    pub(in crate::agent) started: u64,
    pub(in crate::agent) answered: u64,
    pub(in crate::agent) finished: u64,
    pub(in crate::agent) aborted: u64,
    pub(in crate::agent) reopened: u64,
    /// Requests whose response has not ended.
    pub(in crate::agent) in_flight: u64,
    /// Requests whose response has not begun.
    pub(in crate::agent) waiting: u64,
    /// Chunked responses that have begun and not ended.
    pub(in crate::agent) streaming: u64,
    /// Bytes of the waiting requests, heads included.
    pub(in crate::agent) waiting_bytes: u64,
    /// Latencies since the pod is known.
    pub(in crate::agent) ttft: LatencyTotals,
    pub(in crate::agent) itl: LatencyTotals,
    pub(in crate::agent) duration: LatencyTotals,
    /// Packets on the pod's interface, including retransmits.
    pub(in crate::agent) rx: PacketTotals,
    pub(in crate::agent) tx: PacketTotals,
    /// TCP payload at the pod's sockets, whichever way it took.
    pub(in crate::agent) socket_rx_payload: u64,
    pub(in crate::agent) socket_tx_payload: u64,
    /// The part of the received payload that arrived on KV ports.
    pub(in crate::agent) rx_kv_payload: u64,
    pub(in crate::agent) uplink_packets: u64,
    pub(in crate::agent) uplink_bytes: u64,
    /// KV cache sent and received over TCP, averaged over the last 200 ms.
    pub(in crate::agent) kv_tx_bytes_per_second: f64,
    pub(in crate::agent) kv_rx_bytes_per_second: Measured<f32>,
    /// Over the last second.
    pub(in crate::agent) rates: PodRates,
    /// Seconds until the requests in flight end at the present rate; null if unknown.
    pub(in crate::agent) drain_s: Option<f64>,
    /// How busy the pod is, from 0 (idle) to 1 (saturated), and the terms of that score.
    pub(in crate::agent) score: f64,
    pub(in crate::agent) score_terms: Score,
    /// Age of everything but the requests, which are read more often.
    pub(in crate::agent) age_ms: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(in crate::agent) struct LatencyTotals {
    pub(in crate::agent) sum_ms: f64,
    pub(in crate::agent) samples: u64,
    pub(in crate::agent) mean_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(in crate::agent) struct PacketTotals {
    pub(in crate::agent) packets: u64,
    pub(in crate::agent) bytes: u64,
    pub(in crate::agent) payload: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(in crate::agent) struct PodRates {
    pub(in crate::agent) requests: f64,
    pub(in crate::agent) answers: f64,
    pub(in crate::agent) rx_bytes: f64,
    pub(in crate::agent) tx_bytes: f64,
    pub(in crate::agent) ttft_ms: Option<f64>,
    pub(in crate::agent) ttft_p99_ms: Option<f64>,
    pub(in crate::agent) itl_ms: Option<f64>,
    pub(in crate::agent) itl_p99_ms: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PairLoad {
    pub(in crate::agent) pod: Arc<str>,
    /// Null for all peers that are not known pods.
    pub(in crate::agent) peer: Option<Arc<str>>,
    pub(in crate::agent) class: &'static str,
    pub(in crate::agent) opened: u64,
    pub(in crate::agent) established: u64,
    pub(in crate::agent) closed: u64,
    pub(in crate::agent) failed: u64,
    /// Connections that are older than the programs: their bytes are not counted.
    pub(in crate::agent) preexisting: u64,
    /// Open connections without those that RDMA has taken over.
    pub(in crate::agent) open: u64,
    /// Open connections that RDMA has taken over (iWARP): their sockets stay silent.
    pub(in crate::agent) rdma_offloaded: u64,
    pub(in crate::agent) tx_bytes: u64,
    pub(in crate::agent) rx_bytes: u64,
    pub(in crate::agent) retransmits: u64,
    pub(in crate::agent) rtt_us: Option<u64>,
    pub(in crate::agent) tx_bytes_per_second: f64,
    /// Live for KV cache. For other classes a socket that only receives counts 0 until its state changes.
    pub(in crate::agent) rx_bytes_per_second: Measured<f64>,
    pub(in crate::agent) age_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct KvLoad {
    pub(in crate::agent) prefill: Arc<str>,
    pub(in crate::agent) decode: Arc<str>,
    pub(in crate::agent) bytes: u64,
    pub(in crate::agent) bytes_per_second: Measured<f64>,
    /// The end that counted. At `prefill` bytes and rate are live. At `decode` the rate is a live
    /// estimate, and the bytes are complete when a connection ends.
    pub(in crate::agent) counted_at: &'static str,
}

/// Ports of a pod that its manifest does not name.
#[derive(Clone, Debug, Serialize)]
pub(in crate::agent) struct PodPorts {
    pub(in crate::agent) pod: Arc<str>,
    /// Addresses at which its ranks take control messages, from its bootstrap server.
    pub(in crate::agent) control: Vec<SocketAddr>,
    /// Ports on which its processes listen in the host's network.
    pub(in crate::agent) listening: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(in crate::agent) struct LossCounts {
    pub(in crate::agent) connections: u64,
    pub(in crate::agent) pairs: u64,
    pub(in crate::agent) streams: u64,
    pub(in crate::agent) queue_pairs: u64,
    pub(in crate::agent) unreadable: u64,
    /// Segments with control messages.
    pub(in crate::agent) control: u64,
}

impl From<Losses> for LossCounts {
    fn from(losses: Losses) -> LossCounts {
        let Losses { connections, pairs, streams, queue_pairs, unreadable, control } = losses;
        LossCounts { connections, pairs, streams, queue_pairs, unreadable, control }
    }
}

/// The snapshot of the latest counters.
pub(in crate::agent) fn snapshot(
    sampler: &Sampler,
    node: &NodeInfo,
    kv_rates: &KvRates,
    score: impl Fn(&RegisteredPod, &PodCounters) -> Score,
) -> Loads {
    let now = Instant::now();
    let pods = sampler.pods.iter().filter_map(|(id, counters)| {
        let pod = node.pod(*id)?;
        let mut load = pod_load(pod, counters, kv_rates, score(pod, counters), now);
        load.counted_at = load.counted_at.filter(|_| !sampler.unseen.contains(id));
        Some(load)
    });
    let mut pairs: Vec<PairLoad> = Vec::new();
    let mut kv: HashMap<(u32, u32), KvLoad> = HashMap::new();
    for (key, counters) in &sampler.pairs {
        let Some(pod) = node.pod(key.pod) else { continue };
        let peer = node.pod(key.peer);
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
        node: node.name.clone(),
        pods: pods.collect(),
        pairs,
        kv,
        roce: sampler.queue_pairs.load(node.pods.iter(), now),
        learned_ports: node
            .pods
            .iter()
            .filter_map(|pod| pod_ports(pod, &node.learned_ports))
            .collect(),
        interfaces: node.interfaces.clone(),
        rdma: RdmaLoad::default(),
        control: ControlLoad::default(),
        missing: node.missing.clone(),
        lost: sampler.losses.into(),
        connections: sampler.connections,
        streams: sampler.streams,
    }
}

fn pod_ports(pod: &RegisteredPod, learned: &LearnedPorts) -> Option<PodPorts> {
    let known = &pod.placed.pod;
    let control = learned.control.get(&known.uid).into_iter().flatten().copied();
    let listening = learned.listening.get(&known.uid).into_iter().flatten().copied();
    let ports = PodPorts {
        pod: Arc::clone(&known.name),
        control: control.collect(),
        listening: listening.collect(),
    };
    (!ports.control.is_empty() || !ports.listening.is_empty()).then_some(ports)
}

/// Adds a pair to the KV transfers. If both ends are on this node, the sender counts: its count is live.
fn count_kv(
    kv: &mut HashMap<(u32, u32), KvLoad>,
    pod: &RegisteredPod,
    peer: &RegisteredPod,
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

fn latency(ns: u64, samples: u64) -> LatencyTotals {
    let sum_ms = ns as f64 / 1e6;
    LatencyTotals { sum_ms, samples, mean_ms: (samples > 0).then(|| sum_ms / samples as f64) }
}

fn pod_load(
    pod: &RegisteredPod,
    counters: &PodCounters,
    kv: &KvRates,
    score: Score,
    now: Instant,
) -> PodLoad {
    let (http, traffic) = (&counters.http, &counters.traffic);
    let known = &pod.placed.pod;
    let rates = counters.window.rates();
    let kv = kv.of_pod(pod.id);
    PodLoad {
        pod: Arc::clone(&known.name),
        uid: Arc::clone(&known.uid),
        address: known.address.to_string(),
        role: known.role,
        counted_at: Some(if counters.by_interface { "interface" } else { "socket" }),
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
        rx: PacketTotals {
            packets: traffic.rx_packets,
            bytes: traffic.rx_bytes,
            payload: traffic.rx_payload,
        },
        tx: PacketTotals {
            packets: traffic.tx_packets,
            bytes: traffic.tx_bytes,
            payload: traffic.tx_payload,
        },
        uplink_packets: traffic.uplink_packets,
        socket_rx_payload: traffic.socket_rx_payload,
        socket_tx_payload: traffic.socket_tx_payload,
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
    pod: &RegisteredPod,
    peer: Option<&RegisteredPod>,
    counters: &PairCounters,
    kv: &KvRates,
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
        preexisting: counters.preexisting,
        open: counters.open().saturating_sub(counters.offloaded),
        rdma_offloaded: counters.offloaded,
        tx_bytes: stats.tx_bytes,
        rx_bytes: stats.rx_bytes,
        retransmits: stats.retransmits,
        rtt_us: stats.rtt_us_sum.checked_div(stats.rtt_samples),
        tx_bytes_per_second: counters.tx_per_second,
        rx_bytes_per_second,
        age_ms: milliseconds(now - counters.read),
    }
}
