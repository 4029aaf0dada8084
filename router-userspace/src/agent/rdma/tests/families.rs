//! Drivers that no virtual machine has: counters that are stale, wrap or reset.

use std::sync::Arc;

use router_core::provenance::{Measured, Provenance};

use super::super::counters::Freshness;
use super::node::{Node, of};
use super::rounds::ONE;

/// The counters of erdma's installer driver, with the relevant ones set.
fn installer(tx: u64, rx: u64) -> Vec<(&'static str, u64)> {
    vec![
        ("listen_create_cnt", 2),
        ("accept_total_cnt", 4),
        ("connect_total_cnt", 4),
        ("cmdq_submitted_cnt", 1_500),
        ("cmdq_comp_cnt", 1_500),
        ("erdma_aeq_event_cnt", 0),
        ("verbs_create_qp_cnt", 8),
        ("hw_tx_reqs_cnt", tx / 65_536),
        ("hw_tx_packets_cnt", tx / 8_000),
        ("hw_tx_bytes_cnt", tx),
        ("hw_disable_drop_cnt", 0),
        ("hw_bps_limit_drop_cnt", 3),
        ("hw_pps_limit_drop_cnt", 1),
        ("hw_rx_packets_cnt", rx / 8_000),
        ("hw_rx_bytes_cnt", rx),
        ("hw_rx_disable_drop_cnt", 0),
        ("hw_rx_bps_limit_drop_cnt", 0),
        ("hw_rx_pps_limit_drop_cnt", 0),
    ]
}

fn held() -> Node {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.process(10, ONE);
    node.pairs(&[(5, 3, 0, 10)]);
    node
}

fn unknown() -> (Measured<f64>, Measured<f64>) {
    (Measured::unknown(), Measured::unknown())
}

#[test]
fn unchanged_counters_of_the_installers_driver_are_unknown_not_zero() {
    let mut node = held();
    node.counts(&installer(1 << 40, 1 << 30));
    node.second();
    let report = node.second();
    let device = &report.devices[0];
    assert_eq!(
        (device.freshness, device.bytes_provenance),
        (Freshness::Unproven, Provenance::Unknown)
    );
    assert_eq!((device.rates.tx_bytes, device.rates.rx_bytes), unknown());
    assert_eq!(of(device, ONE).tx_bytes_per_second, Measured::unknown());
    let [reason] =
        &report.missing.iter().filter(|line| line.contains("erdma_0")).collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", report.missing)
    };
    assert!(reason.contains("cannot refresh") && reason.contains("dev-erdma"), "{reason}");
}

#[test]
fn control_messages_without_bytes_make_counters_stale() {
    let mut node = held();
    node.counts(&installer(1 << 40, 0));
    for second in 0..8 {
        node.activity.control.insert(Arc::from(ONE), 1_000 * second);
        node.second();
    }
    assert_eq!(node.device().freshness, Freshness::Stale);
}

#[test]
fn counters_of_the_installers_driver_that_advance_on_reads_are_exact() {
    let mut node = held();
    for second in 0..5 {
        node.counts(&installer(second * 1_000_000, 0));
        node.second();
    }
    node.counts(&installer(5_000_000, 0));
    let device = node.device();
    assert_eq!((device.freshness, device.bytes_provenance), (Freshness::Moving, Provenance::Exact));
    assert_eq!(device.rates.tx_bytes, Measured::exact(1_000_000.0));
    assert_eq!(device.counters.tx_drops_bandwidth, Some(3));
    // From now on unchanged counters mean idle.
    let device = node.device();
    assert_eq!(device.freshness, Freshness::Idle);
    assert_eq!(of(&device, ONE).tx_bytes_per_second, Measured::exact(0.0));
}

#[test]
fn a_device_without_queue_pairs_is_idle_with_any_driver() {
    let mut node = Node::new("erdma_0", 19, "iw");
    node.counts(&installer(1, 1));
    node.second();
    assert_eq!(node.device().freshness, Freshness::Idle);
}

#[test]
fn unchanged_counters_with_advancing_sequence_numbers_are_stale() {
    let mut node = held();
    node.counts(&[("tx_bytes_cnt", 9), ("rx_bytes_cnt", 9)]);
    for second in 0..4 {
        node.pairs(&[(5, 3, second * 100, 10)]);
        node.second();
    }
    let report = node.second();
    let device = &report.devices[0];
    assert_eq!(
        (device.freshness, device.bytes_provenance),
        (Freshness::Stale, Provenance::Unknown)
    );
    let is_reported =
        report.missing.iter().any(|line| line.contains("although queue pairs are active"));
    assert!(is_reported, "{:?}", report.missing);
    node.counts(&[("tx_bytes_cnt", 1 << 30), ("rx_bytes_cnt", 9)]);
    let device = node.device();
    assert_eq!(device.freshness, Freshness::Moving);
    assert_eq!(device.rates.tx_bytes, Measured::unknown(), "the jump took an unknown time");
    let held = of(&device, ONE);
    assert_eq!(held.tx_bytes, Measured::estimated((1u64 << 30) as f64 - 9.0));
}

#[test]
fn a_wrap_or_a_reset_gives_no_wrong_rate() {
    let mut node = held();
    node.counts(&[("tx_bytes_cnt", u64::MAX - 99), ("rx_bytes_cnt", 0)]);
    node.second();
    node.counts(&[("tx_bytes_cnt", 100), ("rx_bytes_cnt", 0)]);
    let device = node.device();
    assert_eq!(device.rates.tx_bytes, Measured::exact(200.0));
    node.counts(&[("tx_bytes_cnt", 1 << 40), ("rx_bytes_cnt", 0)]);
    node.second();
    node.counts(&[("tx_bytes_cnt", 50), ("rx_bytes_cnt", 0)]);
    let device = node.device();
    assert_eq!((device.freshness, device.rates.tx_bytes), (Freshness::Unread, Measured::unknown()));
    node.counts(&[("tx_bytes_cnt", 80), ("rx_bytes_cnt", 0)]);
    let device = node.device();
    assert_eq!(device.rates.tx_bytes, Measured::exact(30.0));
}

#[test]
fn mlx5_has_its_bytes_from_the_standard_folder_and_requests_of_32_bits() {
    let mut node = Node::new("mlx5_0", 1, "roce");
    let port = "class/infiniband/mlx5_0/ports/1";
    let data = |node: &Node, words: u64| {
        node.tree.write(&format!("{port}/counters/port_xmit_data"), &format!("{words}\n"));
        node.tree.write(&format!("{port}/counters/port_rcv_data"), "0\n");
    };
    node.tree.write(&format!("{port}/rate"), "200 Gb/sec (4X HDR)\n");
    node.counts(&[("rx_write_requests", u64::from(u32::MAX)), ("out_of_buffer", 0)]);
    data(&node, 0);
    node.second();
    node.counts(&[("rx_write_requests", 4), ("out_of_buffer", 0)]);
    data(&node, 250_000_000);
    let device = node.device();
    assert_eq!(device.freshness, Freshness::Moving, "a wrap of 32 bits is no reset");
    assert_eq!(device.speed_bits_per_second, Some(200_000_000_000));
    assert_eq!(device.rates.tx_utilisation, Measured::exact(0.04));
}

#[test]
fn a_placeholder_speed_is_replaced_by_the_interface_speed_or_the_flag() {
    let sped = |speeds| {
        let node = Node::with("erdma_0", 19, "iw", speeds);
        node.tree.erdma("erdma_0", &[]);
        node
    };
    let mut node = sped(Vec::new());
    assert_eq!(node.device().speed_bits_per_second, None, "2.5 Gbit/s is erdma's `unknown`");
    node.tree.write("class/net/eth1/speed", "25000\n");
    assert_eq!(node.device().speed_bits_per_second, Some(25_000_000_000));
    let configured = vec![(None, 1), (Some("erdma_0".to_owned()), 64_000_000_000)];
    assert_eq!(sped(configured).device().speed_bits_per_second, Some(64_000_000_000));
}
