//! RDMA in Prometheus' text format. An unknown value has no series, since it is not 0.

use std::fmt::{self, Write};

use router_core::provenance::{Measured, Provenance};

use super::rdma_report::DeviceReport;
use super::view::{PairRdma, PodRdma, RdmaLoad};

type DeviceMetric = (&'static str, &'static str, &'static str, fn(&DeviceReport) -> Option<f64>);
type RdmaPodMetric = (&'static str, &'static str, &'static str, fn(&PodRdma) -> Measured<f64>);
type RdmaPairMetric = (&'static str, &'static str, fn(&PairRdma) -> Measured<f64>);

fn count(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

const DEVICES: [DeviceMetric; 14] = [
    ("transmit_bytes_total", "counter", "Bytes that the device sent", |device| {
        count(device.counters.tx_bytes)
    }),
    ("receive_bytes_total", "counter", "Bytes that the device received", |device| {
        count(device.counters.rx_bytes)
    }),
    ("transmit_packets_total", "counter", "Packets that the device sent", |device| {
        count(device.counters.tx_packets)
    }),
    ("receive_packets_total", "counter", "Packets that the device received", |device| {
        count(device.counters.rx_packets)
    }),
    ("transmit_requests_total", "counter", "ActivityEvidence requests", |device| {
        count(device.counters.tx_requests)
    }),
    (
        "transmit_drops_bandwidth_total",
        "counter",
        "Packets dropped by the bandwidth limit",
        |device| count(device.counters.tx_drops_bandwidth),
    ),
    (
        "receive_drops_bandwidth_total",
        "counter",
        "Packets dropped by the bandwidth limit",
        |device| count(device.counters.rx_drops_bandwidth),
    ),
    (
        "transmit_drops_packets_total",
        "counter",
        "Packets dropped by the packet rate limit",
        |device| count(device.counters.tx_drops_packets),
    ),
    (
        "receive_drops_packets_total",
        "counter",
        "Packets dropped by the packet rate limit",
        |device| count(device.counters.rx_drops_packets),
    ),
    ("speed_bits_per_second", "gauge", "Speed of the link", |device| {
        count(device.speed_bits_per_second)
    }),
    ("transmit_utilisation", "gauge", "Share of the link in use", |device| {
        device.rates.tx_utilisation.value()
    }),
    ("receive_utilisation", "gauge", "Share of the link in use", |device| {
        device.rates.rx_utilisation.value()
    }),
    (
        "bytes_exact",
        "gauge",
        "1 if the device counts bytes and its counters are up to date, else 0",
        |device| Some(if device.bytes_provenance == Provenance::Exact { 1.0 } else { 0.0 }),
    ),
    ("age_seconds", "gauge", "Time since the counters were read", |device| {
        Some(device.age_ms / 1e3)
    }),
];

const PODS: [RdmaPodMetric; 3] = [
    (
        "transmit_bytes_total",
        "counter",
        "The pod's share of the bytes that its devices sent",
        |pod| pod.tx_bytes,
    ),
    (
        "receive_bytes_total",
        "counter",
        "The pod's share of the bytes that its devices received",
        |pod| pod.rx_bytes,
    ),
    ("queue_pairs", "gauge", "Queue pairs that can move data", |pod| {
        Measured::new(Some(f64::from(pod.active_queue_pairs)), Provenance::Exact)
    }),
];

const PAIRS: [RdmaPairMetric; 2] = [
    ("transmit_bytes_per_second", "The pair's share of the pod's sent bytes", |pair| {
        pair.tx_bytes_per_second
    }),
    ("receive_bytes_per_second", "The pair's share of the pod's received bytes", |pair| {
        pair.rx_bytes_per_second
    }),
];

/// Appends the metrics.
pub(in crate::agent) fn write(page: &mut String, load: &RdmaLoad) -> fmt::Result {
    for (name, kind, what, value) in DEVICES {
        header(page, &format!("device_{name}"), kind, what)?;
        for device in &load.devices {
            if let Some(value) = value(device) {
                let (name_of, port) = (escaped(&device.device), device.port);
                let labels =
                    format!("device=\"{name_of}\",port=\"{port}\",driver=\"{}\"", device.driver);
                writeln!(page, "pd_agent_rdma_device_{name}{{{labels}}} {value}")?;
            }
        }
    }
    for (name, kind, what, value) in PODS {
        header(page, &format!("pod_{name}"), kind, what)?;
        for pod in &load.pods {
            let measured = value(pod);
            let Some(value) = measured.value() else { continue };
            let (pod, provenance) = (escaped(&pod.pod), measured.provenance().as_str());
            let labels = format!("pod=\"{pod}\",provenance=\"{provenance}\"");
            writeln!(page, "pd_agent_rdma_pod_{name}{{{labels}}} {value}")?;
        }
    }
    for (name, what, value) in PAIRS {
        header(page, &format!("pair_{name}"), "gauge", what)?;
        for pair in &load.pairs {
            let measured = value(pair);
            let Some(value) = measured.value() else { continue };
            let (pod, peer) = (escaped(&pair.pod), escaped(pair.peer.as_deref().unwrap_or("")));
            let (address, provenance) = (pair.peer_address, measured.provenance().as_str());
            let peer = format!("peer=\"{peer}\",peer_address=\"{address}\"");
            let labels = format!("pod=\"{pod}\",{peer},provenance=\"{provenance}\"");
            writeln!(page, "pd_agent_rdma_pair_{name}{{{labels}}} {value}")?;
        }
    }
    Ok(())
}

fn header(page: &mut String, name: &str, kind: &str, what: &str) -> fmt::Result {
    writeln!(page, "# HELP pd_agent_rdma_{name} {what}.\n# TYPE pd_agent_rdma_{name} {kind}")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::super::view::PodNames;
    use super::*;
    use crate::agent::rdma::tests::node::Node;
    use crate::agent::rdma::tests::rounds::ONE;

    #[test]
    fn known_values_have_a_provenance_label_and_unknown_ones_no_series() {
        let mut node = Node::new("rxe0", 14, "roce");
        node.process(10, ONE);
        node.pairs(&[(17, 3, 0, 10)]);
        node.connections(&[(17, 10, "10.0.0.1:900", "10.0.0.2:901")]);
        let names = PodNames {
            by_uid: [(ONE.into(), "default/\"odd\"".into())].into(),
            by_address: HashMap::new(),
        };
        let mut page_of = |counters: &[(&str, u64)]| {
            node.counts(counters);
            node.second();
            let load = RdmaLoad::new(&node.second(), Duration::ZERO, &names);
            let mut page = String::new();
            write(&mut page, &load).expect("writing to a string");
            page
        };
        let page = page_of(&[("sent_pkts", 3), ("rcvd_pkts", 4)]);
        let has = |page: &str, line: &str| page.lines().any(|found| found == line);
        let device = "{device=\"rxe0\",port=\"1\",driver=\"rxe\"}";
        assert!(has(&page, &format!("pd_agent_rdma_device_transmit_packets_total{device} 3")));
        assert!(has(&page, &format!("pd_agent_rdma_device_bytes_exact{device} 0")));
        assert!(!page.contains("\npd_agent_rdma_device_transmit_bytes_total{"), "{page}");
        assert!(!page.contains("\npd_agent_rdma_pod_transmit_bytes_total{"), "{page}");
        let page = page_of(&[("sent_pkts", 3), ("sent_bytes", 9), ("rcvd_bytes", 0)]);
        let pod = "{pod=\"default/\\\"odd\\\"\",provenance=\"exact\"}";
        assert!(has(&page, &format!("pd_agent_rdma_pod_transmit_bytes_total{pod} 0")), "{page}");
        assert!(has(&page, &format!("pd_agent_rdma_pod_queue_pairs{pod} 1")), "{page}");
        assert!(page.contains("peer_address=\"10.0.0.2\",provenance=\"exact\"} 0"), "{page}");
    }
}
