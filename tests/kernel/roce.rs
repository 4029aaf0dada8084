//! RoCEv2 over an uplink: queue pairs in `/v1/loads` and in the metrics, and the log when there are
//! too many of them.
#![expect(unsafe_code, reason = "an address of a packet socket is a struct of the kernel's")]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use netns::{Node, PodNetwork, Topology};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use router_tests::agent::{Agent, count};
use router_tests::node_manifests::decode;
use serde_json::{Value, json};

use crate::frames;

/// Sends whole frames from the machine outside.
struct Sender {
    socket: OwnedFd,
    link: i32,
}

impl Sender {
    fn new(node: &Node) -> Sender {
        let index = node.outside.sh("ip -o link show eth0");
        let link = index.split(':').next().and_then(|i| i.parse().ok()).expect("an index");
        let socket = node.outside.run(|| {
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("raw")
        });
        Sender { socket, link }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: all zeros are an address, and the buffer is a frame.
        let sent = unsafe {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = self.link;
            let length = size_of_val(&to) as u32;
            let (frame, bytes) = (frame.as_ptr().cast(), frame.len());
            let socket = self.socket.as_raw_fd();
            libc::sendto(socket, frame, bytes, 0, (&raw const to).cast(), length)
        };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

/// A RoCEv2 packet from the machine outside to a queue pair of the pod.
fn packet(node: &Node, pod: &PodNetwork, queue_pair: u32, opcode: u8, payload: usize) -> Vec<u8> {
    let mut reth = [0; 16];
    reth[12..].copy_from_slice(&65_536u32.to_be_bytes());
    let extended = if matches!(opcode, 6 | 10 | 12) { &reth[..] } else { &[] };
    let mut frame = frames::roce(opcode, extended, payload);
    for (at, address) in [(26, node.addresses().1), (30, pod.address)] {
        let IpAddr::V4(address) = address else { panic!("IPv4") };
        frame[at..at + 4].copy_from_slice(&address.octets());
    }
    // Behind Ethernet, IPv4 and UDP, in the BTH.
    frame[46..50].copy_from_slice(&queue_pair.to_be_bytes());
    frame
}

fn packets(loads: &Value) -> u64 {
    let queue_pairs = loads["roce"]["queue_pairs"].as_array().expect("a list");
    queue_pairs.iter().map(|queue_pair| count(&queue_pair["packets"])).sum()
}

fn queue_pairs_are_shown(xdp: &str) {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start_with(&node, &[decode("d0", one.address)], &["--xdp", xdp]);
    let sender = Sender::new(&node);
    let sent =
        [(17, 6, 1024), (17, 7, 1024), (17, 8, 512), (17, 10, 100), (18, 12, 0), (18, 17, 0)];
    let frame = |number: u32, (queue_pair, opcode, payload)| {
        let mut frame = packet(&node, &one, queue_pair, opcode, payload);
        frame[51..54].copy_from_slice(&number.to_be_bytes()[1..]);
        frame
    };
    for (number, sent) in (1..).zip(sent) {
        sender.send(&frame(number, sent));
    }
    // The second one again.
    sender.send(&frame(2, sent[1]));
    let loads = agent.until("all seven", |loads| packets(loads) == 7);
    let shown = loads["roce"]["queue_pairs"].as_array().expect("a list");
    let wanted = [
        (17, json!([5, 1, 2, 2_660, 2, 131_072, 0, 0])),
        (18, json!([2, 0, 0, 0, 0, 0, 1, 65_536])),
    ];
    for (queue_pair, counts) in &wanted {
        let found = shown.iter().find(|shown| shown["queue_pair"] == *queue_pair);
        let found = found.expect("the queue pair");
        let fields = [
            "packets",
            "repeated",
            "messages",
            "payload_bytes",
            "writes",
            "write_bytes",
            "reads",
            "read_bytes",
        ];
        assert_eq!(Value::from(fields.map(|field| found[field].clone()).to_vec()), *counts);
        assert_eq!(found["pod"], "default/d0");
        assert_eq!(found["source"], node.addresses().1.to_string());
        assert_eq!(found["destination"], one.address.to_string());
    }
    let labels = format!(
        "{{source=\"{}\",destination=\"{}\",queue_pair=\"17\"}}",
        node.addresses().1,
        one.address
    );
    let metrics = agent.metrics();
    for line in [
        format!("pd_agent_roce_payload_bytes_total{labels} 2660\n"),
        format!("pd_agent_roce_write_bytes_total{labels} 131072\n"),
        format!("pd_agent_roce_repeated_total{labels} 1\n"),
    ] {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
}

#[test]
fn queue_pairs_that_tc_counts_are_in_loads_and_metrics() {
    queue_pairs_are_shown("off");
}

#[test]
fn queue_pairs_that_xdp_counts_are_in_loads_and_metrics() {
    queue_pairs_are_shown("native");
}

#[test]
fn a_full_map_counts_further_queue_pairs_together_and_logs_rarely() {
    const SENT: u64 = 16_600;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[decode("d0", one.address)]);
    let sender = Sender::new(&node);
    let mut frame = packet(&node, &one, 0, 4, 64);
    for queue_pair in 1..=SENT as u32 {
        frame[46..50].copy_from_slice(&queue_pair.to_be_bytes());
        sender.send(&frame);
    }
    let known = |loads: &Value| count(&loads["roce"]["queue_pair_count"]);
    let others = |loads: &Value| count(&loads["roce"]["others"]["packets"]);
    let loads = agent.until("all of them", |loads| known(loads) + others(loads) == SENT);
    let roce = &loads["roce"];
    // One entry is that of the others.
    assert_eq!(known(&loads), router_common::maps::QUEUE_PAIRS as u64 - 1);
    assert_eq!(roce["others"]["payload_bytes"], others(&loads) * 64);
    assert_eq!(loads["lost"]["queue_pairs"], others(&loads));
    let log = agent.log();
    let said = log.lines().filter(|line| line.contains("QUEUE_PAIRS is full")).count();
    // At every doubling of 1 to 217.
    assert_eq!(said, 8, "{log}");
}
