//! The agent's metrics in the Prometheus text format, made from a snapshot.

use std::fmt::{self, Write};

use crate::agent::api::loads::{Loads, PairLoad, PodLoad};
use crate::agent::counters::queue_pairs::RoceCounts;

/// A metric of every pod: its name, type, help text and value.
type PodMetric = (&'static str, &'static str, &'static str, fn(&PodLoad) -> f64);
/// A metric of every pair: its name, type, help text and value.
type PairMetric = (&'static str, &'static str, &'static str, fn(&PairLoad) -> f64);

const PODS: [PodMetric; 17] = [
    ("requests_total", "counter", "Requests that began", |pod| pod.started as f64),
    ("answers_total", "counter", "Responses that ended", |pod| pod.finished as f64),
    ("aborted_total", "counter", "Responses that were cut short", |pod| pod.aborted as f64),
    ("requests_in_flight", "gauge", "Requests whose response has not ended", |pod| {
        pod.in_flight as f64
    }),
    ("requests_waiting", "gauge", "Requests whose response has not begun", |pod| {
        pod.waiting as f64
    }),
    ("request_bytes_waiting", "gauge", "Bytes of requests whose response has not begun", |pod| {
        pod.waiting_bytes as f64
    }),
    ("load_score", "gauge", "Load of the pod, from 0 (idle) to 1 (saturated)", |pod| pod.score),
    ("streams", "gauge", "Chunked responses that have begun and not ended", |pod| {
        pod.streaming as f64
    }),
    (
        "ttft_seconds_sum",
        "counter",
        "Sum of the times from a request to the first byte of its response body",
        |pod| pod.ttft.sum_ms / 1e3,
    ),
    ("ttft_seconds_count", "counter", "Responses with a body", |pod| pod.ttft.samples as f64),
    (
        "itl_seconds_sum",
        "counter",
        "Sum of the times between segments of chunked responses",
        |pod| pod.itl.sum_ms / 1e3,
    ),
    ("itl_seconds_count", "counter", "Segments of chunked responses after the first", |pod| {
        pod.itl.samples as f64
    }),
    ("receive_bytes_total", "counter", "IP bytes to the pod", |pod| pod.rx.bytes as f64),
    ("transmit_bytes_total", "counter", "IP bytes from the pod", |pod| pod.tx.bytes as f64),
    ("receive_packets_total", "counter", "Packets to the pod", |pod| pod.rx.packets as f64),
    ("transmit_packets_total", "counter", "Packets from the pod", |pod| pod.tx.packets as f64),
    ("uplink_receive_bytes_total", "counter", "IP bytes to the pod over uplinks", |pod| {
        pod.uplink_bytes as f64
    }),
];

const PAIRS: [PairMetric; 7] = [
    (
        "connections_opened_total",
        "counter",
        "Connection attempts and accepted connections",
        |pair| pair.opened as f64,
    ),
    ("connections_failed_total", "counter", "Connection attempts that failed", |pair| {
        pair.failed as f64
    }),
    ("connections_closed_total", "counter", "Connections that ended", |pair| pair.closed as f64),
    ("connections_open", "gauge", "Open connections", |pair| pair.open as f64),
    ("acknowledged_bytes_total", "counter", "Payload that the peer acknowledged", |pair| {
        pair.tx_bytes as f64
    }),
    ("received_bytes_total", "counter", "Payload received", |pair| pair.rx_bytes as f64),
    ("retransmits_total", "counter", "Retransmitted segments", |pair| pair.retransmits as f64),
];

/// A RoCEv2 counter: its name, help text and value.
type RoceMetric = (&'static str, &'static str, fn(&RoceCounts) -> u64);

const ROCE: [RoceMetric; 8] = [
    ("packets", "RoCEv2 packets that arrived over uplinks", |counts| counts.packets),
    ("repeated", "Retransmitted RoCEv2 packets", |counts| counts.repeated),
    ("messages", "Messages that ended", |counts| counts.messages),
    ("payload_bytes", "Payload of SENDs, WRITEs and READ responses", |counts| counts.payload_bytes),
    ("writes", "WRITE requests", |counts| counts.writes),
    ("write_bytes", "Bytes that WRITE requests announce", |counts| counts.write_bytes),
    ("reads", "READ requests", |counts| counts.reads),
    ("read_bytes", "Bytes that READ requests ask for", |counts| counts.read_bytes),
];

/// The page of all metrics.
pub(in crate::agent) fn text(loads: &Loads) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    _ = write(&mut page, loads);
    page
}

fn write(page: &mut String, loads: &Loads) -> fmt::Result {
    for (name, kind, what, value) in PODS {
        header(page, &format!("pod_{name}"), kind, what)?;
        for pod in &loads.pods {
            let role = pod.role.map_or("none", role_name);
            let (pod_name, value) = (escaped(&pod.pod), value(pod));
            writeln!(page, "pd_agent_pod_{name}{{pod=\"{pod_name}\",role=\"{role}\"}} {value}")?;
        }
    }
    for (name, kind, what, value) in PAIRS {
        header(page, &format!("pair_{name}"), kind, what)?;
        for pair in &loads.pairs {
            let (pod, peer) = (escaped(&pair.pod), escaped(pair.peer.as_deref().unwrap_or("")));
            let (class, value) = (pair.class, value(pair));
            let labels = format!("pod=\"{pod}\",peer=\"{peer}\",class=\"{class}\"");
            writeln!(page, "pd_agent_pair_{name}{{{labels}}} {value}")?;
        }
    }
    header(page, "kv_bytes_total", "counter", "KV cache from a prefill to a decode")?;
    for kv in &loads.kv {
        let (prefill, decode) = (escaped(&kv.prefill), escaped(&kv.decode));
        let labels = format!("prefill=\"{prefill}\",decode=\"{decode}\"");
        writeln!(page, "pd_agent_kv_bytes_total{{{labels}}} {}", kv.bytes)?;
    }
    crate::agent::rdma::report::write_metrics(page, &loads.rdma)?;
    for (name, what, value) in ROCE {
        header(page, &format!("roce_{name}_total"), "counter", what)?;
        for load in &loads.roce.queue_pairs {
            let labels = format!(
                "source=\"{}\",destination=\"{}\",queue_pair=\"{}\"",
                load.source, load.destination, load.queue_pair
            );
            let value = value(&load.counted);
            writeln!(page, "pd_agent_roce_{name}_total{{{labels}}} {value}")?;
        }
        let labels = "source=\"\",destination=\"\",queue_pair=\"\"";
        let value = value(&loads.roce.others);
        writeln!(page, "pd_agent_roce_{name}_total{{{labels}}} {value}")?;
    }
    header(
        page,
        "lost_details_total",
        "counter",
        "Details that did not fit into a map, and headers that cannot be parsed",
    )?;
    let lost = loads.lost;
    for (map, count) in [
        ("connections", lost.connections),
        ("pairs", lost.pairs),
        ("streams", lost.streams),
        ("queue_pairs", lost.queue_pairs),
        ("headers", lost.unreadable),
    ] {
        writeln!(page, "pd_agent_lost_details_total{{map=\"{map}\"}} {count}")?;
    }
    header(page, "missing", "gauge", "Number of measurements that are not possible on this node")?;
    writeln!(page, "pd_agent_missing {}", loads.missing.len())
}

fn header(page: &mut String, name: &str, kind: &str, what: &str) -> fmt::Result {
    writeln!(page, "# HELP pd_agent_{name} {what}.\n# TYPE pd_agent_{name} {kind}")
}

fn role_name(role: router_core::fleet::Role) -> &'static str {
    match role {
        router_core::fleet::Role::Prefill => "prefill",
        router_core::fleet::Role::Decode => "decode",
        router_core::fleet::Role::Unified => "unified",
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_pods_and_pairs_is_documented() {
        let document = include_str!("../../../../docs/reference/metrics.md");
        let pods = PODS.iter().map(|(name, kind, ..)| (format!("pod_{name}"), kind));
        let pairs = PAIRS.iter().map(|(name, kind, ..)| (format!("pair_{name}"), kind));
        for (name, kind) in pods.chain(pairs) {
            let row = format!("| `pd_agent_{name}` | {kind} |");
            assert!(document.contains(&row), "docs/reference/metrics.md has no row {row}");
        }
    }
}
