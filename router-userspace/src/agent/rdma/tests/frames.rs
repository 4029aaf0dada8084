//! RDMA in load frames, and which link the scheduler uses.

use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::Role;
use router_core::frame::{DeviceKind, PodRecord};
use router_core::provenance::Measured;

use super::super::report::{PodRdmaRates, device_records, pod_rates, with_rdma};
use super::node::Node;
use super::rounds::{ONE, TWO};

const SPEED: u64 = 8_000_000;

fn node(name: &'static str, driver: u32, protocol: &str) -> Node {
    let node = Node::with(name, driver, protocol, vec![(None, SPEED)]);
    node.process(10, ONE);
    node.process(11, TWO);
    node
}

/// The rates of both pods after the device sent 1,000 bytes per second and received none.
fn moved(node: &mut Node, names: [&'static str; 2]) -> (PodRdmaRates, PodRdmaRates) {
    node.counts(&[(names[0], 0), (names[1], 0)]);
    node.second();
    node.counts(&[(names[0], 1_000), (names[1], 0)]);
    let parts = pod_rates(&node.second());
    let of = |uid: &str| parts.get(uid).copied().unwrap_or_default();
    (of(ONE), of(TWO))
}

#[test]
fn transfers_use_the_device_that_bypasses_the_host() {
    let mut node = node("erdma_0", 19, "iw");
    node.pairs(&[(5, 3, 0, 10)]);
    let (one, two) = moved(&mut node, ["tx_bytes_cnt", "rx_bytes_cnt"]);
    assert_eq!((one.tx, one.rx), (Measured::exact(1_000.0), Measured::exact(0.0)));
    let link = one.link.expect("a link");
    assert_eq!((link.speed, link.tx, link.rx), (1e6, 1_000.0, 0.0));
    assert_eq!((one.is_offloaded, one.sent, two), (true, Some(1_000), PodRdmaRates::default()));
    let report = node.rdma.report(node.now);
    let [record] = &device_records(&report, Duration::ZERO)[..] else { panic!("one device") };
    assert_eq!((record.kind, &*record.name), (DeviceKind::Rdma, "erdma_0/1"));
    assert_eq!(record.speed_bytes_per_s, Measured::exact(1e6));
    assert_eq!(record.utilisation, Measured::exact(0.001));
}

#[test]
fn two_pods_split_the_rates_and_share_the_link() {
    let mut node = node("erdma_0", 19, "iw");
    node.pairs(&[(5, 3, 0, 10), (6, 3, 0, 11), (7, 3, 0, 11), (8, 3, 0, 11)]);
    let (one, two) = moved(&mut node, ["tx_bytes_cnt", "rx_bytes_cnt"]);
    assert_eq!((one.tx, two.tx), (Measured::estimated(250.0), Measured::estimated(750.0)));
    assert_eq!(one.link, two.link);
    assert_eq!(one.sent, None, "an estimate teaches nothing");
}

#[test]
fn unknown_bytes_give_no_link() {
    let mut node = node("erdma_0", 19, "iw");
    node.pairs(&[(5, 3, 0, 10)]);
    node.counts(&[("hw_tx_bytes_cnt", 7), ("hw_rx_bytes_cnt", 7)]);
    node.second();
    let part = pod_rates(&node.second())[ONE];
    assert_eq!((part.tx, part.rx, part.link), (Measured::unknown(), Measured::unknown(), None));
    assert!(part.is_offloaded, "its transfers do not take the interface either");
    let kv = Measured::exact(5.0);
    let record = PodRecord { kv_tx_bytes_per_s: kv, ..PodRecord::default() };
    let record = with_rdma(record, Some(Role::Prefill), part);
    assert_eq!(record.kv_tx_bytes_per_s, Measured::unknown(), "not what TCP alone moved");
}

#[test]
fn a_device_seen_by_the_host_uses_the_interface_and_counts_once() {
    let mut node = node("rxe0", 14, "roce");
    node.pairs(&[(5, 3, 0, 10)]);
    let (one, _) = moved(&mut node, ["sent_bytes", "rcvd_bytes"]);
    assert_eq!((one.is_offloaded, one.link), (false, None));
    assert_eq!(one.tx, Measured::exact(1_000.0));
}

#[test]
fn bytes_sent_by_prefills_and_received_by_decodes_are_estimated_kv_cache() {
    let part = PodRdmaRates {
        is_offloaded: true,
        tx: Measured::exact(100.0),
        rx: Measured::exact(7.0),
        sent: Some(1_000),
        link: None,
    };
    let (zero, tcp) = (Measured::exact(0.0), Measured::exact(20.0));
    let record = PodRecord {
        kv_tx_bytes_per_s: tcp,
        kv_rx_bytes_per_s: zero,
        kv_tx_bytes: 50,
        ..PodRecord::default()
    };
    let prefill = with_rdma(record.clone(), Some(Role::Prefill), part);
    assert_eq!(prefill.kv_tx_bytes_per_s, Measured::estimated(120.0));
    assert_eq!((prefill.kv_rx_bytes_per_s, prefill.kv_tx_bytes), (zero, 1_050));
    let decode = with_rdma(record.clone(), Some(Role::Decode), part);
    assert_eq!((decode.kv_rx_bytes_per_s, decode.kv_tx_bytes), (Measured::estimated(7.0), 50));
    assert_eq!(with_rdma(record.clone(), Some(Role::Decode), PodRdmaRates::default()), record);
}

#[test]
fn a_decode_without_counters_gets_the_page_estimate() {
    let mut node = node("rxe0", 14, "roce");
    node.rdma.set_page_bytes(Some(1_000));
    node.pairs(&[(5, 3, 0, 10)]);
    node.counts(&[("sent_pkts", 0), ("rcvd_pkts", 0)]);
    for bytes in [0, 528] {
        let asked =
            super::super::KvRequests { control_bytes: bytes, requests: u64::from(bytes > 0) };
        node.activity.kv_requests = [(Arc::from(ONE), asked)].into();
        node.second();
    }
    let part = pod_rates(&node.rdma.report(node.now))[ONE];
    assert_eq!((part.rx, part.tx), (Measured::estimated(100_000.0), Measured::unknown()));
}
