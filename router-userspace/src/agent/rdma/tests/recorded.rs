//! Answers of real kernels, recorded during ib_write_bw in a virtual machine per kernel.

use router_core::provenance::{Measured, Provenance};

use super::super::counters::names;
use super::super::report::DeviceReport;
use super::node::{Node, of};

const OLDEST: &str = include_str!("recorded/linux-5.10.txt");
const NEWEST: &str = include_str!("recorded/linux-7.3.txt");
const WRITER: &str = "11111111-2222-4333-8444-555555555501";
const WRITTEN: &str = "11111111-2222-4333-8444-555555555502";

/// Both devices, sorted by name.
fn devices(node: &mut Node) -> [DeviceReport; 2] {
    let mut devices = node.second().devices;
    devices.sort_by(|a, b| a.device.cmp(&b.device));
    devices.try_into().expect("two devices")
}

#[test]
fn real_answers_name_devices_links_queue_pairs_pods_and_peers() {
    for text in [OLDEST, NEWEST] {
        let devices = devices(&mut Node::recorded(text));
        for (device, expected) in devices
            .iter()
            .zip([("rxe0", "wa", WRITER, "10.7.0.2"), ("rxe1", "wb", WRITTEN, "10.7.0.1")])
        {
            let (name, link, pod, peer) = expected;
            assert_eq!((&*device.device, device.driver), (name, "rxe"));
            assert_eq!((device.interface.as_deref(), device.seen_by_host), (Some(link), true));
            assert_eq!(device.speed_bits_per_second, Some(10_000_000_000));
            // The kernel's queue pair is a management queue pair and has no holder.
            assert_eq!(device.holders.len(), 1, "{device:#?}");
            let held = of(device, pod);
            assert_eq!((held.queue_pairs.ready_to_send, held.queue_pairs.active()), (1, 1));
            assert_eq!(held.share, Measured::exact(1.0));
            let [connected] = &held.peers[..] else { panic!("{:?}", held.peers) };
            assert_eq!(connected.address.to_string(), peer);
        }
    }
}

#[test]
fn real_counters_by_netlink_are_those_of_sysfs() {
    for (text, bytes) in [(OLDEST, Provenance::Unknown), (NEWEST, Provenance::Exact)] {
        let mut node = Node::recorded(text);
        node.second();
        let from_netlink = devices(&mut node);
        node.without_netlink();
        node.second();
        let from_sysfs = devices(&mut node);
        let folder = |device: &str| format!("counters class/infiniband/{device}/");
        for (listed, read) in from_netlink.iter().zip(&from_sysfs) {
            assert_eq!((listed.bytes_provenance, read.bytes_provenance), (bytes, bytes));
            assert_eq!(listed.counters.tx_bytes.is_some(), bytes == Provenance::Exact);
            // The recording was made before perftest started to write.
            assert!(listed.counters.tx_packets > Some(0), "{listed:#?}");
            assert_eq!(format!("{:?}", listed.counters), format!("{:?}", read.counters));
            let line = text.lines().find(|line| line.starts_with(&folder(&listed.device)));
            let named = line.expect("counters").split(' ').skip(2);
            let known = named.filter_map(|counter| names::hardware(counter.split('=').next()?));
            assert!(known.count() >= 4, "{line:?}");
        }
    }
}
