//! Sampling: attribution of bytes to owners, and what is reported if it is unknown.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use router_common::flow::{QueuePairKey, QueuePairStats, mapped};

use router_core::provenance::Measured;

use super::super::KvRequests;
use super::super::report::{PodNames, RdmaLoad};
use super::node::{Node, of};

pub(crate) const ONE: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const TWO: &str = "22222222-2222-4222-8222-222222222222";
const SENDS: u8 = 3;

fn exact(value: f64) -> Measured<f64> {
    Measured::exact(value)
}

fn estimated(value: f64) -> Measured<f64> {
    Measured::estimated(value)
}

fn tx_rx(tx: u64, rx: u64) -> [(&'static str, u64); 2] {
    [("tx_bytes_cnt", tx), ("rx_bytes_cnt", rx)]
}

#[test]
fn a_pod_alone_on_a_device_gets_exact_bytes() {
    let mut node = Node::with("erdma_0", 19, "iw", vec![(None, 8_000_000)]);
    node.process(10, ONE);
    node.pairs(&[(5, SENDS, 0, 10), (6, SENDS, 0, 10), (7, 1, 0, 10)]);
    node.counts(&tx_rx(1_000, 0));
    let first = node.device();
    assert_eq!(first.rates.tx_bytes, Measured::unknown(), "one reading is no rate");
    node.counts(&tx_rx(501_000, 4_000));
    let device = node.device();
    assert_eq!((device.rates.tx_bytes, device.rates.rx_bytes), (exact(500_000.0), exact(4_000.0)));
    assert_eq!(device.rates.tx_utilisation, exact(0.5));
    let held = of(&device, ONE);
    assert_eq!((held.share, held.tx_bytes), (exact(1.0), exact(500_000.0)));
    assert_eq!(held.tx_bytes_per_second, exact(500_000.0));
    assert_eq!((held.queue_pairs.ready_to_send, held.queue_pairs.init), (2, 1));
}

#[test]
fn two_pods_share_by_queue_pairs_as_an_estimate() {
    let mut node = Node::new("mlx5_0", 1, "roce");
    node.process(10, ONE);
    node.process(11, TWO);
    node.pairs(&[(5, SENDS, 0, 10), (6, SENDS, 0, 10), (7, SENDS, 0, 10), (8, SENDS, 0, 11)]);
    node.counts(&[("rdma_tx_bytes", 0), ("rdma_rx_bytes", 0)]);
    node.device();
    node.counts(&[("rdma_tx_bytes", 400), ("rdma_rx_bytes", 800)]);
    let device = node.device();
    assert_eq!(of(&device, ONE).tx_bytes, estimated(300.0));
    assert_eq!(of(&device, TWO).rx_bytes, estimated(200.0));
    assert_eq!(of(&device, TWO).rx_bytes_per_second, estimated(200.0));
    assert_eq!(device.rates.tx_utilisation, Measured::unknown(), "of no known speed");
}

#[test]
fn a_pod_keeps_its_bytes_after_its_queue_pairs_are_gone() {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.process(10, ONE);
    node.pairs(&[(5, SENDS, 0, 10)]);
    node.counts(&tx_rx(0, 0));
    node.device();
    node.counts(&tx_rx(70, 7));
    node.pairs(&[]);
    node.device();
    node.counts(&tx_rx(100, 7));
    let device = node.device();
    let held = of(&device, ONE);
    assert_eq!((held.tx_bytes, held.rx_bytes), (exact(70.0), exact(7.0)));
    assert_eq!((held.queue_pairs.active(), held.tx_bytes_per_second), (0, exact(0.0)));
}

#[test]
fn an_invisible_process_makes_the_owner_unknown() {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.pairs(&[(5, SENDS, 0, u32::MAX)]);
    node.counts(&tx_rx(0, 0));
    let report = node.second();
    assert!(report.missing.iter().any(|line| line.contains("hostPID")), "{:?}", report.missing);
    let json = serde_json::to_value(&report.devices[0]).expect("JSON");
    assert_eq!(json["holders"][0]["owner"], "unseen");
    assert_eq!(json["holders"][0]["pod"], serde_json::Value::Null);
}

#[test]
fn peers_come_from_the_connection_manager() {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.process(10, ONE);
    node.pairs(&[(5, SENDS, 0, 10), (6, SENDS, 0, 10)]);
    node.connections(&[
        (5, 10, "10.0.0.1:900", "10.0.0.2:901"),
        (6, 10, "10.0.0.1:902", "10.0.0.3:903"),
    ]);
    node.counts(&tx_rx(0, 0));
    node.device();
    node.counts(&tx_rx(100, 0));
    let report = node.second();
    assert_eq!(report.iwarp_endpoints.len(), 2, "iWARP has taken over both connections");
    assert!(report.uses_iwarp(ONE) && !report.uses_iwarp(TWO));
    let pod = Arc::<str>::from("default/prefill");
    let names = PodNames {
        by_uid: [(ONE.into(), Arc::clone(&pod))].into(),
        by_address: [("10.0.0.2".parse().unwrap(), "default/decode".into())].into(),
    };
    let load = RdmaLoad::new(&report, Duration::ZERO, &names);
    assert_eq!(load.pods[0].pod, pod);
    assert_eq!(load.pods[0].tx_bytes_per_second, exact(100.0));
    let [known, unknown] = &load.pairs[..] else { panic!("two pairs: {:?}", load.pairs) };
    assert_eq!(known.peer.as_deref(), Some("default/decode"));
    assert_eq!((known.tx_bytes_per_second, unknown.peer.clone()), (estimated(50.0), None));
    node.connections(&[
        (5, 10, "10.0.0.1:900", "10.0.0.2:901"),
        (6, 10, "10.0.0.1:902", "10.0.0.2:903"),
    ]);
    node.counts(&tx_rx(200, 0));
    let load = RdmaLoad::new(&node.second(), Duration::ZERO, &names);
    assert_eq!(load.pairs[0].tx_bytes_per_second, exact(100.0), "all of it with one peer");
}

#[test]
fn rocev2_that_arrives_goes_to_the_pod_of_its_queue_pair_at_that_address() {
    let mut node = Node::new("rxe0", 14, "roce");
    node.tree.write("class/infiniband/rxe0/ports/1/gids/0", &format!("{}\n", gid(1)));
    node.tree
        .write("class/infiniband/rxe0/ports/1/gids/1", "0000:0000:0000:0000:0000:0000:0000:0000\n");
    node.process(10, ONE);
    node.pairs(&[(17, SENDS, 0, 10)]);
    node.counts(&[("sent_pkts", 0), ("rcvd_pkts", 0)]);
    let key = |host| QueuePairKey {
        source: mapped([10, 0, 0, 2]),
        destination: mapped([10, 0, 0, host]),
        queue_pair: 17,
    };
    let stats = |write_bytes| QueuePairStats {
        writes: 1,
        write_bytes,
        payload_bytes: write_bytes,
        packets: 4,
        ..QueuePairStats::default()
    };
    node.activity.arrivals = vec![(key(9), stats(7))];
    node.device();
    // Another device has a queue pair of the same number, on another address.
    node.activity.arrivals = vec![(key(9), stats(8)), (key(1), stats(65_536))];
    let device = node.device();
    assert!(device.seen_by_host, "its packets are counted by tc and XDP as well");
    let held = of(&device, ONE);
    assert_eq!(held.arrived.expect("arrivals").write_bytes, 65_536);
    assert_eq!(held.peers[0].address, "10.0.0.2".parse::<std::net::IpAddr>().unwrap());
    assert_eq!(held.rx_bytes, Measured::unknown(), "the device does not count bytes");
    assert_eq!(device.counters.rx_bytes, None);
}

#[test]
fn a_decode_without_device_counters_is_estimated_by_requested_pages() {
    let mut node = Node::new("rxe0", 14, "roce");
    node.rdma.set_page_bytes(Some(65_536));
    node.process(10, ONE);
    node.pairs(&[(17, SENDS, 0, 10)]);
    let names = PodNames {
        by_uid: [(ONE.into(), "default/decode".into())].into(),
        by_address: HashMap::new(),
    };
    let mut asked = |control_bytes, requests, counted: Option<u64>| {
        node.activity.kv_requests = [(ONE.into(), KvRequests { control_bytes, requests })].into();
        let packets = [("sent_pkts", 0), ("rcvd_pkts", 0)];
        let bytes = counted.map(|bytes| [("sent_bytes", 0), ("rcvd_bytes", bytes)]);
        let all: Vec<_> = packets.into_iter().chain(bytes.into_iter().flatten()).collect();
        node.counts(&all);
        let report = node.second();
        RdmaLoad::new(&report, Duration::ZERO, &names).pods.remove(0)
    };
    asked(0, 0, None);
    let pod = asked(128 + 400, 1, None);
    assert_eq!(pod.rx_bytes_per_second, estimated(100.0 * 65_536.0));
    assert_eq!(pod.tx_bytes_per_second, Measured::unknown());
    // Counted bytes are not estimated in addition.
    asked(128 + 400, 1, Some(5));
    asked(128 + 400, 1, Some(5));
    let pod = asked(128 + 800, 1, Some(1_005));
    assert_eq!(pod.rx_bytes_per_second, exact(1_000.0));
}

/// A GID made of 10.0.0.`host`.
fn gid(host: u8) -> String {
    format!("0000:0000:0000:0000:0000:ffff:0a00:{host:04x}")
}

#[test]
fn a_removed_device_is_dropped_and_a_returning_one_restarts() {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.counts(&tx_rx(50, 0));
    node.device();
    node.without_device();
    assert!(node.second().devices.is_empty());
    assert!(!node.rdma.has_devices());
}

#[test]
fn without_netlink_sysfs_is_used_and_the_missing_split_is_reported() {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.without_netlink();
    node.tree.erdma("erdma_0", &[("tx_bytes_cnt", 5), ("rx_bytes_cnt", 6)]);
    node.second();
    node.tree.erdma("erdma_0", &[("tx_bytes_cnt", 105), ("rx_bytes_cnt", 6)]);
    let report = node.second();
    let device = &report.devices[0];
    assert_eq!((device.driver, device.rates.tx_bytes), ("erdma", exact(100.0)));
    assert_eq!(device.interface.as_deref(), Some("eth1"));
    assert!(device.holders.is_empty());
    let is_reported = report.missing.iter().any(|line| line.contains("cannot be split by pod"));
    assert!(is_reported, "{:?}", report.missing);
}
