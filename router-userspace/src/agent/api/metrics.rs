//! The agent's metrics: names, labels and help texts.
//!
//! The page is made of one snapshot for each scrape, so that nothing is kept for a pod that is gone.

use std::fmt;

use http::HeaderMap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge, Histogram};
use prometheus_client::registry::Registry;
use router_core::fleet::Role;

use crate::agent::api::loads::{ControlLoad, LatencyTotals, Loads, PairLoad, PodLoad};
use crate::agent::counters::queue_pairs::{RoceCounts, RoceLoad};
use crate::agent::rdma;
use crate::metrics::exposition::{
    self, Number, ProcessCounters, ProcessUse, encode_family, encode_single,
};

/// A metric of every pod: its name, type, help text and value.
type PodMetric = (&'static str, MetricType, &'static str, fn(&PodLoad) -> Number);
/// A metric of every pair: its name, type, help text and value.
type PairMetric = (&'static str, MetricType, &'static str, fn(&PairLoad) -> Number);

/// Metrics of requests. A pod whose requests are unknown has no sample: `counted_at` is null.
const REQUESTS: [PodMetric; 8] = [
    ("pod_requests", Counter, "Requests that began", |pod| pod.started.into()),
    ("pod_answers", Counter, "Responses that ended", |pod| pod.finished.into()),
    ("pod_aborted", Counter, "Responses that were cut short", |pod| pod.aborted.into()),
    ("pod_requests_in_flight", Gauge, "Requests whose response has not ended", |pod| {
        pod.in_flight.into()
    }),
    ("pod_requests_waiting", Gauge, "Requests whose response has not begun", |pod| {
        pod.waiting.into()
    }),
    ("pod_request_bytes_waiting", Gauge, "Bytes of requests whose response has not begun", |pod| {
        pod.waiting_bytes.into()
    }),
    ("pod_load_score", Gauge, "Load of the pod, from 0 (idle) to 1 (saturated)", |pod| {
        pod.score.into()
    }),
    ("pod_streams", Gauge, "Chunked responses that have begun and not ended", |pod| {
        pod.streaming.into()
    }),
];

const TRAFFIC: [PodMetric; 5] = [
    ("pod_receive_bytes", Counter, "IP bytes to the pod", |pod| pod.rx.bytes.into()),
    ("pod_transmit_bytes", Counter, "IP bytes from the pod", |pod| pod.tx.bytes.into()),
    ("pod_receive_packets", Counter, "Packets to the pod", |pod| pod.rx.packets.into()),
    ("pod_transmit_packets", Counter, "Packets from the pod", |pod| pod.tx.packets.into()),
    ("pod_uplink_receive_bytes", Counter, "IP bytes to the pod over uplinks", |pod| {
        pod.uplink_bytes.into()
    }),
];

/// A latency of every pod: its name, help text and value.
type PodLatency = (&'static str, &'static str, fn(&PodLoad) -> LatencyTotals);

const LATENCIES: [PodLatency; 2] = [
    ("pod_ttft_seconds", "Time from a request to the first byte of its response body", |pod| {
        pod.ttft
    }),
    ("pod_itl_seconds", "Time between segments of chunked responses", |pod| pod.itl),
];

const PAIRS: [PairMetric; 7] = [
    ("pair_connections_opened", Counter, "Connection attempts and accepted connections", |pair| {
        pair.opened.into()
    }),
    ("pair_connections_failed", Counter, "Connection attempts that failed", |pair| {
        pair.failed.into()
    }),
    ("pair_connections_closed", Counter, "Connections that ended", |pair| pair.closed.into()),
    ("pair_connections_open", Gauge, "Open connections", |pair| pair.open.into()),
    ("pair_acknowledged_bytes", Counter, "Payload that the peer acknowledged", |pair| {
        pair.tx_bytes.into()
    }),
    ("pair_received_bytes", Counter, "Payload received", |pair| pair.rx_bytes.into()),
    ("pair_retransmits", Counter, "Retransmitted segments", |pair| pair.retransmits.into()),
];

/// A RoCEv2 counter: its name, help text and value.
type RoceMetric = (&'static str, &'static str, fn(&RoceCounts) -> u64);

const ROCE: [RoceMetric; 8] = [
    ("roce_packets", "RoCEv2 packets that arrived over uplinks", |counts| counts.packets),
    ("roce_repeated", "Retransmitted RoCEv2 packets", |counts| counts.repeated),
    ("roce_messages", "Messages that ended", |counts| counts.messages),
    ("roce_payload_bytes", "Payload of SENDs, WRITEs and READ responses", |counts| {
        counts.payload_bytes
    }),
    ("roce_writes", "WRITE requests", |counts| counts.writes),
    ("roce_write_bytes", "Bytes that WRITE requests announce", |counts| counts.write_bytes),
    ("roce_reads", "READ requests", |counts| counts.reads),
    ("roce_read_bytes", "Bytes that READ requests ask for", |counts| counts.read_bytes),
];

/// The page of all metrics, and its content type.
pub(in crate::agent) fn page(loads: Loads, request: &HeaderMap) -> (&'static str, String) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessUse));
    let agent = registry.sub_registry_with_prefix("pd_agent");
    agent.register_collector(Box::new(LoadsCollector(loads)));
    agent.register_collector(Box::new(ProcessCounters));
    exposition::page(&registry, request)
}

/// Messages by kind and direction, and what was not read of them.
fn encode_control(encoder: &mut DescriptorEncoder<'_>, control: &ControlLoad) -> fmt::Result {
    let counts = &control.counts;
    let messages = [("sent", counts.sent), ("received", counts.received)];
    let messages = messages.into_iter().flat_map(|(direction, counts)| {
        [
            ("indices", counts.indices),
            ("succeeded", counts.succeeded),
            ("failed", counts.failed),
            ("abort", counts.aborts),
            ("other", counts.other),
        ]
        .map(|(kind, count)| ([("kind", kind), ("direction", direction)], count.into()))
    });
    let name = "control_messages";
    encode_family(encoder, (name, Counter, "Control messages of KV transfers"), messages)?;
    let skipped = [
        ("repeated", counts.repeated),
        ("continued", counts.continued),
        ("unread", counts.unread),
        ("cut", counts.cut),
        ("dropped", counts.dropped),
        ("forgotten", counts.forgotten),
    ];
    encode_family(
        encoder,
        ("control_skipped", Counter, "Segments, updates and rooms of which not all was read"),
        skipped.into_iter().map(|(reason, count)| ([("reason", reason)], count.into())),
    )?;
    encode_single(
        encoder,
        ("control_open_rooms", Gauge, "KV transfers that began and have not ended"),
        Number::Count(control.open_rooms as u64),
    )
}

/// The metrics of one snapshot.
#[derive(Debug)]
struct LoadsCollector(Loads);

impl Collector for LoadsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (encoder, LoadsCollector(loads)) = (&mut encoder, self);
        encode_pods(encoder, &loads.pods)?;
        encode_pairs(encoder, loads)?;
        rdma::report::encode_metrics(encoder, &loads.rdma)?;
        encode_roce(encoder, &loads.roce)?;
        encode_control(encoder, &loads.control)?;
        let lost = loads.lost;
        let maps = [
            ("connections", lost.connections),
            ("pairs", lost.pairs),
            ("streams", lost.streams),
            ("queue_pairs", lost.queue_pairs),
            ("headers", lost.unreadable),
            ("control", lost.control),
        ];
        encode_family(
            encoder,
            (
                "lost_details",
                Counter,
                "Details that did not fit into a map, and headers that cannot be parsed",
            ),
            maps.into_iter().map(|(map, count)| ([("map", map)], count.into())),
        )?;
        encode_single(
            encoder,
            ("missing", Gauge, "Number of measurements that are not possible on this node"),
            Number::Count(loads.missing.len() as u64),
        )
    }
}

fn encode_pods(encoder: &mut DescriptorEncoder<'_>, pods: &[PodLoad]) -> fmt::Result {
    let is_counted = |pod: &&PodLoad| pod.counted_at.is_some();
    for (name, kind, help, value) in REQUESTS {
        let samples = pods.iter().filter(is_counted).map(|pod| (pod_labels(pod), value(pod)));
        encode_family(encoder, (name, kind, help), samples)?;
    }
    for (name, kind, help, value) in TRAFFIC {
        let samples = pods.iter().map(|pod| (pod_labels(pod), value(pod)));
        encode_family(encoder, (name, kind, help), samples)?;
    }
    for (name, help, value) in LATENCIES {
        let mut family = encoder.encode_descriptor(name, &format!("{help}."), None, Histogram)?;
        for pod in pods.iter().filter(is_counted) {
            let LatencyTotals { sum_ms, samples, .. } = value(pod);
            // A snapshot has the sum and the count; the format requires a bucket as well.
            let buckets = [(f64::INFINITY, samples)];
            family.encode_family(&pod_labels(pod))?.encode_histogram::<NoLabelSet>(
                sum_ms / 1e3,
                samples,
                &buckets,
                None,
            )?;
        }
    }
    Ok(())
}

fn pod_labels(pod: &PodLoad) -> [(&'static str, &str); 2] {
    [("pod", &pod.pod), ("role", pod.role.map_or("none", role_name))]
}

fn encode_pairs(encoder: &mut DescriptorEncoder<'_>, loads: &Loads) -> fmt::Result {
    for (name, kind, help, value) in PAIRS {
        let samples = loads.pairs.iter().map(|pair| {
            let peer = pair.peer.as_deref().unwrap_or_default();
            ([("pod", &*pair.pod), ("peer", peer), ("class", pair.class)], value(pair))
        });
        encode_family(encoder, (name, kind, help), samples)?;
    }
    let transfers = loads
        .kv
        .iter()
        .map(|kv| ([("prefill", &*kv.prefill), ("decode", &*kv.decode)], Number::Count(kv.bytes)));
    encode_family(encoder, ("kv_bytes", Counter, "KV cache from a prefill to a decode"), transfers)
}

fn encode_roce(encoder: &mut DescriptorEncoder<'_>, roce: &RoceLoad) -> fmt::Result {
    for (name, help, value) in ROCE {
        let labels = |source, destination, queue_pair| {
            [("source", source), ("destination", destination), ("queue_pair", queue_pair)]
        };
        let busiest = roce.queue_pairs.iter().map(|load| {
            let (source, destination) = (load.source.to_string(), load.destination.to_string());
            (labels(source, destination, load.queue_pair.to_string()), value(&load.counted).into())
        });
        let others = labels(String::new(), String::new(), String::new());
        let others = (others, value(&roce.others).into());
        encode_family(encoder, (name, Counter, help), busiest.chain([others]))?;
    }
    Ok(())
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Prefill => "prefill",
        Role::Decode => "decode",
        Role::Unified => "unified",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_is_documented_and_every_documented_metric_exists() {
        let document = include_str!("../../../../docs/reference/metrics.md");
        let documented: BTreeSet<String> = document
            .lines()
            .filter(|line| line.starts_with("| `pd_agent_"))
            .map(|line| line.splitn(4, '|').take(3).collect::<Vec<_>>().join("|"))
            .collect();
        let mut headers = HeaderMap::new();
        headers.insert(http::header::ACCEPT, "application/openmetrics-text".parse().unwrap());
        let (_, page) = page(Loads::default(), &headers);
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let types = types.filter(|line| line.starts_with("pd_agent_"));
        let exist = types.map(|line| {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            format!("| `{name}` | {kind} ")
        });
        assert_eq!(documented, exist.collect(), "docs/reference/metrics.md against the page");
        assert!(page.contains("\npd_agent_missing 0\n"), "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}
