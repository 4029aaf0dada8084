//! Pods that only receive KV cache: their rate is published while it arrives.
//!
//! sock_ops counts a receiver's bytes when the connection's state changes, and not before.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns::{Namespace, Node, PodNetwork, Topology};
use router_core::frame::{Class, pod_id};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{PodEntry, decode, prefill};
use router_tests::traffic::{joined, listen, receive};

const KV: u16 = 15_432;
/// A rate that machines of all kinds keep up with.
const BLOCK: usize = 200_000;
const EVERY: Duration = Duration::from_millis(5);

/// Sends at a steady rate until it is stopped.
struct Steady {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
}

impl Steady {
    fn start(from: &Namespace, to: &PodNetwork) -> Steady {
        let listener = listen(&to.netns, to.address, KV);
        let (client, mut server) = joined(from, &listener);
        let (sent, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (total, ends) = (Arc::clone(&sent), Arc::clone(&stop));
        let sender = std::thread::spawn(move || send(client, &total, &ends));
        let receiver = std::thread::spawn(move || {
            std::io::copy(&mut server, &mut std::io::sink()).expect("receiving");
        });
        Steady { sent, stop, sender, receiver }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How much was sent.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().expect("the sender");
        self.receiver.join().expect("the receiver");
        self.sent.load(Ordering::Relaxed)
    }
}

fn send(mut client: TcpStream, total: &AtomicU64, ends: &AtomicBool) {
    let block = vec![7; BLOCK];
    let start = Instant::now();
    for number in 1.. {
        if ends.load(Ordering::Relaxed) {
            return;
        }
        client.write_all(&block).expect("sending");
        total.fetch_add(BLOCK as u64, Ordering::Relaxed);
        std::thread::sleep((EVERY * number).saturating_sub(start.elapsed()));
    }
}

/// Over two seconds, the mean receive rate that the agent reports of a decode and of its pair with
/// `p0` is the rate that is sent.
fn is_right(agent: &Agent<'_>, steady: &Steady, provenance: &str) {
    // Rates are over the last fifth of a second.
    std::thread::sleep(Duration::from_millis(400));
    let (before, start) = (steady.sent(), Instant::now());
    let mut reported = Vec::new();
    while start.elapsed() < Duration::from_secs(2) {
        let loads = agent.loads();
        let rate = &pod(&loads, "d0")["kv_rx_bytes_per_second"];
        let pair = pair(&loads, "d0", "p0", "kv");
        let pair_rate = &pair["rx_bytes_per_second"];
        let expected = (&provenance.into(), &provenance.into());
        assert_eq!((&rate["provenance"], &pair_rate["provenance"]), expected, "{loads:#}");
        assert_eq!((&pair["open"], &pair["rx_bytes"]), (&1.into(), &0.into()));
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        let frame = agent.first_report();
        let record = frame.pods.iter().find(|record| record.pod == pod_id("uid-d0"));
        let record = record.expect("d0 in the frame").kv_rx_bytes_per_s;
        assert_eq!(record.provenance().as_str(), provenance);
        let kv = frame
            .pairs
            .iter()
            .find(|pair| (pair.key.pod, pair.key.class) == (pod_id("uid-d0"), Class::Kv));
        let kv = kv.expect("its pair in the frame").rx_bytes_per_s;
        reported.push([
            number(&rate["value"]),
            number(&pair_rate["value"]),
            f64::from(record.value().expect("a known rate")),
            f64::from(kv),
        ]);
        std::thread::sleep(Duration::from_millis(40));
    }
    let real = (steady.sent() - before) as f64 / start.elapsed().as_secs_f64();
    for (index, what) in ["pod", "pair", "pod in frames", "pair in frames"].iter().enumerate() {
        let mean = reported.iter().map(|rates| rates[index]).sum::<f64>() / reported.len() as f64;
        eprintln!(
            "{what}: {mean:.0} bytes a second reported, {real:.0} sent, {} times",
            reported.len()
        );
        assert!((mean / real - 1.0).abs() < 0.1, "{what}: {mean} reported, {real} sent");
    }
}

/// From another node, over these interfaces.
fn from_elsewhere(topology: Topology, flags: &[&str]) {
    let node = Node::new(topology);
    let one = node.pod(2);
    let elsewhere = PodEntry { node: "node-2", ..prefill("p0", node.addresses().1) };
    let agent = Agent::start_with(&node, &[elsewhere, decode("d0", one.address)], flags);
    let steady = Steady::start(&node.outside, &one);
    is_right(&agent, &steady, "estimated");
    let loads = agent.loads();
    let row = &loads["kv"][0];
    assert_eq!((&row["decode"], &row["counted_at"]), (&"default/d0".into(), &"decode".into()));
    assert!(
        row["bytes_per_second"]["value"].as_f64() > Some(0.0)
            && row["bytes_per_second"]["provenance"] == "estimated",
        "{row:#}"
    );
    let sent = steady.end();
    let loads = agent.until("exact at its end, and silent", |loads| {
        pair(loads, "d0", "p0", "kv")["rx_bytes"] == sent
            && pod(loads, "d0")["kv_rx_bytes_per_second"]["value"] == 0.0
    });
    // What was sent twice and out of order may count twice.
    let arrived = count(&pod(&loads, "d0")["rx_kv_payload"]);
    assert!((sent..=sent + 65_536 * 8).contains(&arrived), "{arrived} of {sent}");
    assert!(count(&pod(&loads, "d0")["rx"]["payload"]) >= sent);
}

#[test]
fn a_pure_receivers_rate_is_live_and_right() {
    from_elsewhere(Topology::Routed, &[]);
}

#[test]
fn a_pure_receivers_rate_is_live_and_right_behind_a_bridge() {
    from_elsewhere(Topology::Bridged, &[]);
}

#[test]
fn a_pure_receivers_rate_is_live_and_right_where_xdp_counts_the_uplink() {
    from_elsewhere(Topology::Routed, &["--xdp", "native"]);
}

#[test]
fn kv_bytes_of_a_prefill_on_the_same_node_are_exact() {
    let node = Node::new(Topology::Routed);
    let (one, other) = (node.pod(2), node.pod(3));
    let pods = [prefill("p0", other.address), decode("d0", one.address)];
    let agent = Agent::start(&node, &pods);
    let steady = Steady::start(&other.netns, &one);
    is_right(&agent, &steady, "exact");
    let sent = steady.end();
    agent.until("exact at its end", |loads| pair(loads, "d0", "p0", "kv")["rx_bytes"] == sent);
}

/// Segments come again while the pod's acknowledgements are lost.
#[test]
fn kv_cache_that_arrives_twice_counts_once() {
    /// As much as is sent without an acknowledgement.
    const BYTES: u64 = 10_000;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let elsewhere = PodEntry { node: "node-2", ..prefill("p0", node.addresses().1) };
    let agent = Agent::start(&node, &[elsewhere, decode("d0", one.address)]);
    let listener = listen(&one.netns, one.address, KV);
    let (client, server) = joined(&node.outside, &listener);
    node.netns.sh(&format!("ip rule add pref 10 iif {} blackhole", one.link));
    let sending = router_tests::traffic::send(&client, BYTES);
    assert_eq!(receive(&server, BYTES), sending.join().expect("the other thread"));
    agent.until("sent again", |loads| count(&pod(loads, "d0")["socket_rx_payload"]) > BYTES);
    node.netns.sh("ip rule del pref 10");
    drop((client, server));
    agent.until("closed", |loads| pair(loads, "d0", "p0", "kv")["rx_bytes"] == BYTES);
    assert_eq!(pod(&agent.read_again(), "d0")["rx_kv_payload"], BYTES);
}

/// Neither requests nor what comes on other ports are KV cache.
#[test]
fn payload_on_other_ports_is_not_counted_as_kv() {
    const BYTES: u64 = 1_000_003;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let elsewhere = PodEntry { node: "node-2", ..prefill("p0", node.addresses().1) };
    let agent = Agent::start(&node, &[elsewhere, decode("d0", one.address)]);
    for port in [router_tests::node_manifests::ENGINE, 20_001] {
        let listener = listen(&one.netns, one.address, port);
        let (client, server) = joined(&node.outside, &listener);
        let sending = router_tests::traffic::send(&client, BYTES);
        assert_eq!(receive(&server, BYTES), sending.join().expect("the other thread"));
    }
    let loads =
        agent.until("all of it", |loads| count(&pod(loads, "d0")["rx"]["payload"]) >= 2 * BYTES);
    assert_eq!(pod(&loads, "d0")["rx_kv_payload"], 0);
}
