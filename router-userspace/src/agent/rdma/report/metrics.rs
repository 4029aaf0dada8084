//! The metrics of RDMA. An unknown value has no series, since it is not 0.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};
use router_core::provenance::{Measured, Provenance};

use super::rdma_report::DeviceReport;
use super::view::{PairRdma, PodRdma, RdmaLoad};
use crate::metrics::exposition::{Number, encode_family};

type DeviceMetric = (&'static str, MetricType, &'static str, fn(&DeviceReport) -> Option<Number>);
type RdmaPodMetric = (&'static str, MetricType, &'static str, fn(&PodRdma) -> Measured<f64>);
type RdmaPairMetric = (&'static str, &'static str, fn(&PairRdma) -> Measured<f64>);

fn count(value: Option<u64>) -> Option<Number> {
    value.map(Number::Count)
}

const DEVICES: [DeviceMetric; 14] = [
    ("rdma_device_transmit_bytes", Counter, "Bytes that the device sent", |device| {
        count(device.counters.tx_bytes)
    }),
    ("rdma_device_receive_bytes", Counter, "Bytes that the device received", |device| {
        count(device.counters.rx_bytes)
    }),
    ("rdma_device_transmit_packets", Counter, "Packets that the device sent", |device| {
        count(device.counters.tx_packets)
    }),
    ("rdma_device_receive_packets", Counter, "Packets that the device received", |device| {
        count(device.counters.rx_packets)
    }),
    ("rdma_device_transmit_requests", Counter, "Work requests", |device| {
        count(device.counters.tx_requests)
    }),
    (
        "rdma_device_transmit_drops_bandwidth",
        Counter,
        "Packets dropped by the bandwidth limit",
        |device| count(device.counters.tx_drops_bandwidth),
    ),
    (
        "rdma_device_receive_drops_bandwidth",
        Counter,
        "Packets dropped by the bandwidth limit",
        |device| count(device.counters.rx_drops_bandwidth),
    ),
    (
        "rdma_device_transmit_drops_packets",
        Counter,
        "Packets dropped by the packet rate limit",
        |device| count(device.counters.tx_drops_packets),
    ),
    (
        "rdma_device_receive_drops_packets",
        Counter,
        "Packets dropped by the packet rate limit",
        |device| count(device.counters.rx_drops_packets),
    ),
    ("rdma_device_speed_bits_per_second", Gauge, "Speed of the link", |device| {
        count(device.speed_bits_per_second)
    }),
    ("rdma_device_transmit_utilisation", Gauge, "Share of the link in use", |device| {
        device.rates.tx_utilisation.value().map(Number::Real)
    }),
    ("rdma_device_receive_utilisation", Gauge, "Share of the link in use", |device| {
        device.rates.rx_utilisation.value().map(Number::Real)
    }),
    (
        "rdma_device_bytes_exact",
        Gauge,
        "1 if the device counts bytes and its counters are up to date, else 0",
        |device| count(Some((device.bytes_provenance == Provenance::Exact).into())),
    ),
    ("rdma_device_age_seconds", Gauge, "Time since the counters were read", |device| {
        Some(Number::Real(device.age_ms / 1e3))
    }),
];

const PODS: [RdmaPodMetric; 3] = [
    (
        "rdma_pod_transmit_bytes",
        Counter,
        "The pod's share of the bytes that its devices sent",
        |pod| pod.tx_bytes,
    ),
    (
        "rdma_pod_receive_bytes",
        Counter,
        "The pod's share of the bytes that its devices received",
        |pod| pod.rx_bytes,
    ),
    ("rdma_pod_queue_pairs", Gauge, "Queue pairs that can move data", |pod| {
        Measured::new(Some(f64::from(pod.active_queue_pairs)), Provenance::Exact)
    }),
];

const PAIRS: [RdmaPairMetric; 2] = [
    ("rdma_pair_transmit_bytes_per_second", "The pair's share of the pod's sent bytes", |pair| {
        pair.tx_bytes_per_second
    }),
    (
        "rdma_pair_receive_bytes_per_second",
        "The pair's share of the pod's received bytes",
        |pair| pair.rx_bytes_per_second,
    ),
];

/// Encodes the metrics.
pub(in crate::agent) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    load: &RdmaLoad,
) -> fmt::Result {
    for (name, kind, help, value) in DEVICES {
        let samples = load.devices.iter().filter_map(|device| {
            let labels = [
                ("device", device.device.clone()),
                ("port", device.port.to_string()),
                ("driver", device.driver.to_owned()),
            ];
            Some((labels, value(device)?))
        });
        encode_family(encoder, (name, kind, help), samples)?;
    }
    for (name, kind, help, value) in PODS {
        let samples = load.pods.iter().filter_map(|pod| {
            let measured = value(pod);
            let labels = [("pod", &*pod.pod), ("provenance", measured.provenance().as_str())];
            Some((labels, measured.value()?.into()))
        });
        encode_family(encoder, (name, kind, help), samples)?;
    }
    for (name, help, value) in PAIRS {
        let samples = load.pairs.iter().filter_map(|pair| {
            let measured = value(pair);
            let labels = [
                ("pod", pair.pod.to_string()),
                ("peer", pair.peer.as_deref().unwrap_or_default().to_owned()),
                ("peer_address", pair.peer_address.to_string()),
                ("provenance", measured.provenance().as_str().to_owned()),
            ];
            Some((labels, measured.value()?.into()))
        });
        encode_family(encoder, (name, Gauge, help), samples)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use prometheus_client::collector::Collector;
    use prometheus_client::registry::Registry;

    use super::super::view::PodNames;
    use super::*;
    use crate::agent::rdma::tests::node::Node;
    use crate::agent::rdma::tests::rounds::ONE;
    use crate::metrics::exposition;

    #[derive(Debug)]
    struct Page(RdmaLoad);

    impl Collector for Page {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            super::encode(&mut encoder, &self.0)
        }
    }

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
            let mut registry = Registry::default();
            registry.register_collector(Box::new(Page(load)));
            exposition::encode(&registry)
        };
        let page = page_of(&[("sent_pkts", 3), ("rcvd_pkts", 4)]);
        let has = |page: &str, line: &str| page.lines().any(|found| found == line);
        let device = "{device=\"rxe0\",port=\"1\",driver=\"rxe\"}";
        assert!(has(&page, &format!("rdma_device_transmit_packets_total{device} 3")));
        assert!(has(&page, &format!("rdma_device_bytes_exact{device} 0")));
        assert!(!page.contains("\nrdma_device_transmit_bytes_total{"), "{page}");
        assert!(!page.contains("\nrdma_pod_transmit_bytes_total{"), "{page}");
        let page = page_of(&[("sent_pkts", 3), ("sent_bytes", 9), ("rcvd_bytes", 0)]);
        let pod = "{pod=\"default/\\\"odd\\\"\",provenance=\"exact\"}";
        assert!(has(&page, &format!("rdma_pod_transmit_bytes_total{pod} 0.0")), "{page}");
        assert!(has(&page, &format!("rdma_pod_queue_pairs{pod} 1.0")), "{page}");
        assert!(page.contains("peer_address=\"10.0.0.2\",provenance=\"exact\"} 0.0"), "{page}");
    }
}
