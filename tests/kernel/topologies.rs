//! Every way on which packets reach a pod: what is reported is what the engine itself counted.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netns::{Namespace, Node, PodNetwork, Topology};
use router_tests::agent::{Agent, count, pod};
use router_tests::node_manifests::{ENGINE, PodEntry, decode, prefill};
use router_tests::traffic::{connect, joined, listen, receive, send};

use crate::other_programs::pin_redirect_peer;

/// Requests of each client.
const REQUESTS: u64 = 10;
const KV: u16 = 15_432;
const KV_BYTES: u64 = 3_000_011;

/// What an engine itself counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Truth {
    requests: u64,
    received: u64,
    sent: u64,
    /// Times from a whole request to its response, in all.
    took: Duration,
}

fn request(number: u64) -> Vec<u8> {
    let body = "x".repeat(1 + number as usize * 700);
    let head = format!("POST /generate HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    [head, body].concat().into_bytes()
}

/// A sized response and one in chunks, by turns.
fn response(number: u64) -> Vec<u8> {
    if number.is_multiple_of(2) {
        return b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec();
    }
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    [&head[..], b"5\r\nhello\r\n", b"0\r\n\r\n"].concat()
}

/// Serves `clients` connections, one after another, each with REQUESTS requests.
fn engine(listener: TcpListener, clients: u64) -> JoinHandle<Truth> {
    std::thread::spawn(move || {
        let mut truth = Truth::default();
        for _ in 0..clients {
            let (mut stream, _) = listener.accept().expect("a client");
            for number in 0..REQUESTS {
                let mut asked = vec![0; request(number).len()];
                stream.read_exact(&mut asked).expect("a request");
                let read = Instant::now();
                truth.took += read.elapsed();
                stream.write_all(&response(number)).expect("a response");
                truth.requests += 1;
                truth.received += asked.len() as u64;
                truth.sent += response(number).len() as u64;
            }
        }
        truth
    })
}

/// Asks REQUESTS times over one connection; returns the times from the beginning of each request to the end
/// of its response, in all.
fn ask(from: &Namespace, address: IpAddr) -> Duration {
    let mut stream: TcpStream = connect(from, address, ENGINE);
    let mut took = Duration::ZERO;
    for number in 0..REQUESTS {
        let began = Instant::now();
        stream.write_all(&request(number)).expect("asking");
        let mut answer = vec![0; response(number).len()];
        stream.read_exact(&mut answer).expect("a response");
        took += began.elapsed();
        assert_eq!(answer, response(number));
    }
    took
}

/// Asks the engine of `p0`, which listens in `engine_in`, from every client in turn: the agent reports what
/// the engine counted, and where it was counted. The sockets of clients in the pod are the pod's too.
fn is_exact(agent: &Agent<'_>, engine_in: &Namespace, address: IpAddr, clients: &[&Namespace]) {
    let own = clients.iter().filter(|client| client.path() == engine_in.path()).count() as u64;
    // On the host's network a port of a client is no pod's.
    let own = if engine_in.path() == agent.node.netns.path() { 0 } else { own };
    let before = |name| count(&pod(&agent.read_again(), "p0")[name]);
    let (rx, tx) = (before("socket_rx_payload"), before("socket_tx_payload"));
    let served = engine(listen(engine_in, address, ENGINE), clients.len() as u64);
    let asked: Duration = clients.iter().map(|client| ask(client, address)).sum();
    let truth = served.join().expect("the engine");
    assert_eq!(truth.requests, clients.len() as u64 * REQUESTS);
    agent.until("all requests", |loads| {
        let p0 = pod(loads, "p0");
        count(&p0["started"]) >= truth.requests && p0["in_flight"] == 0
    });
    let loads = agent.read_again();
    let p0 = pod(&loads, "p0");
    let counted = ["started", "answered", "finished", "aborted", "reopened", "waiting_bytes"]
        .map(|name| count(&p0[name]));
    let all = truth.requests;
    assert_eq!(counted, [all, all, all, 0, 0, 0], "{p0:#}");
    assert_eq!(count(&p0["ttft"]["samples"]), all, "{p0:#}");
    // Longer than the engine alone takes, and shorter than the client waits.
    let ttft_ms = p0["ttft"]["sum_ms"].as_f64().expect("a time");
    let bounds = [truth.took, asked].map(|time| time.as_secs_f64() * 1e3);
    assert!(bounds[0] < ttft_ms && ttft_ms < bounds[1], "{ttft_ms} ms is not in {bounds:?}");
    assert_eq!(p0["counted_at"], "socket", "{p0:#}");
    let each = (truth.received / clients.len() as u64, truth.sent / clients.len() as u64);
    let both = [truth.received + own * each.1, truth.sent + own * each.0];
    let moved = [count(&p0["socket_rx_payload"]) - rx, count(&p0["socket_tx_payload"]) - tx];
    // On a busy machine a sender may take a segment for lost.
    let again = both.map(|bytes| bytes..bytes + bytes / 4);
    assert!(again[0].contains(&moved[0]) && again[1].contains(&moved[1]), "{moved:?} {p0:#}");
    is_nowhere_unknown(&loads);
}

fn is_nowhere_unknown(loads: &serde_json::Value) {
    let missing = loads["missing"].as_array().expect("a list");
    let unknown = |line: &serde_json::Value| line.to_string().contains("unknown");
    assert!(!missing.iter().any(unknown), "{missing:#?}");
}

/// Sends KV cache to the decode `d0`: its receive counter has every byte.
fn kv_is_exact(agent: &Agent<'_>, from: &Namespace, to: (&Namespace, IpAddr)) {
    let listener = listen(to.0, to.1, KV);
    let (client, server) = joined(from, &listener);
    let sending = send(&client, KV_BYTES);
    assert_eq!(receive(&server, KV_BYTES), sending.join().expect("the sender"));
    drop((client, server));
    agent.until("all KV cache", |loads| count(&pod(loads, "d0")["rx_kv_payload"]) == KV_BYTES);
}

fn elsewhere(node: &Node) -> PodEntry {
    PodEntry { node: "node-2", ..prefill("px", node.addresses().1) }
}

fn index_of(node: &Node, link: &str) -> u32 {
    let shown = node.netns.sh(&format!("ip -o link show dev {link}"));
    shown.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
}

#[test]
fn pods_behind_a_veth_of_any_kind_and_family() {
    for topology in [Topology::Routed, Topology::Bridged] {
        let node = Node::new(topology);
        let (one, two) = (node.pod(2), node.pod(3));
        let named = [prefill("p0", one.address), decode("d0", two.address), elsewhere(&node)];
        let agent = Agent::start(&node, &named);
        is_exact(&agent, &one.netns, one.address, &[&node.outside, &two.netns, &node.netns]);
        kv_is_exact(&agent, &node.outside, (&two.netns, two.address));
    }
}

/// A pod with an address of either family is one pod.
#[test]
fn a_pod_is_exact_by_both_of_its_addresses() {
    let node = Node::new(Topology::Routed);
    let (one, two) = (node.pod(2), node.pod(3));
    let mut named = [prefill("p0", one.address), decode("d0", two.address), elsewhere(&node)];
    named[0].other_address = Some(one.v6);
    named[1].other_address = Some(two.v6);
    let agent = Agent::start(&node, &named);
    is_exact(&agent, &one.netns, one.v6, &[&node.outside, &one.netns, &two.netns]);
    kv_is_exact(&agent, &node.outside, (&two.netns, two.v6));
}

/// Cilium's host routing, and Terway's DataPathV2.
pub(crate) fn packets_that_pass_the_hosts_end_by(agent_first: bool) {
    let node = Node::new(Topology::Routed);
    let (one, two) = (node.pod(2), node.pod(3));
    let named = [prefill("p0", one.address), decode("d0", two.address), elsewhere(&node)];
    let agent = agent_first.then(|| Agent::start(&node, &named));
    node.netns.sh("tc qdisc add dev up0 clsact");
    for (priority, pod) in [(7, &one), (8, &two)] {
        let path = format!("/sys/fs/bpf/redirect-{}", pod.link);
        pin_redirect_peer(&node.netns, pod.address, index_of(&node, &pod.link), &path);
        node.netns.sh(&format!(
            "tc filter add dev up0 ingress pref {priority} bpf direct-action object-pinned {path}"
        ));
    }
    let agent = agent.unwrap_or_else(|| Agent::start(&node, &named));
    is_exact(&agent, &one.netns, one.address, &[&node.outside; 4]);
    kv_is_exact(&agent, &node.outside, (&two.netns, two.address));
    // They did take that way: the programs on the interface saw next to none.
    let packets = count(&pod(&agent.read_again(), "d0")["rx"]["packets"]);
    assert!(packets < 20, "{packets} packets passed the host's end");
}

#[test]
fn packets_that_are_redirected_to_the_peer_are_counted() {
    packets_that_pass_the_hosts_end_by(true);
    packets_that_pass_the_hosts_end_by(false);
}

/// From outside, from a pod of the node and from the node itself: three ways to one socket.
#[test]
fn an_engine_on_the_hosts_network_is_exact_from_everywhere() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let host = node.addresses().0;
    let mut named = [prefill("p0", host), decode("d0", one.address)];
    named[0].host_network = true;
    let agent = Agent::start(&node, &named);
    is_exact(&agent, &node.netns, host, &[&node.outside, &one.netns, &node.netns]);
}

/// Pods of one parent, which reach each other past the node.
pub(crate) fn children_of_the_uplink(kind: &str) {
    let node = Node::new(Topology::Routed);
    let pods: Vec<PodNetwork> = (20..22).map(|host| node.pod_on_uplink(host, kind)).collect();
    let [one, two] = &pods[..] else { panic!("two") };
    let named = [prefill("p0", one.address), decode("d0", two.address), elsewhere(&node)];
    let agent = Agent::start(&node, &named);
    is_exact(&agent, &one.netns, one.address, &[&node.outside, &two.netns, &one.netns]);
    kv_is_exact(&agent, &node.outside, (&two.netns, two.address));
}

#[test]
fn pods_with_macvlan_are_exact() {
    children_of_the_uplink("macvlan mode bridge");
}

#[test]
fn a_pod_with_an_interface_of_its_own_is_exact() {
    let node = Node::new(Topology::Routed);
    let one = node.pod_apart(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    is_exact(&agent, &one.netns, one.address, &[&node.outside, &one.netns]);
    let node = Node::new(Topology::Routed);
    let two = node.pod_apart(3);
    let agent = Agent::start(&node, &[decode("d0", two.address), elsewhere(&node)]);
    kv_is_exact(&agent, &node.outside, (&two.netns, two.address));
}

/// Without a cgroup2 the interface counts, and says so; each request counts once.
#[test]
fn without_cgroup_programs_the_interface_counts() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start_with(&node, &[prefill("p0", one.address)], &["--cgroup", "/nowhere"]);
    let served = engine(listen(&one.netns, one.address, ENGINE), 2);
    (0..2).for_each(|_| _ = ask(&node.outside, one.address));
    let truth = served.join().expect("the engine");
    agent.until("all requests", |loads| count(&pod(loads, "p0")["finished"]) == truth.requests);
    let loads = agent.read_again();
    let p0 = pod(&loads, "p0");
    assert_eq!(count(&p0["started"]), truth.requests);
    assert_eq!(p0["counted_at"], "interface");
    assert_eq!(count(&p0["socket_rx_payload"]), 0);
    let missing = loads["missing"].as_array().expect("a list");
    let named = |line: &serde_json::Value| line.to_string().contains("cgroup_skb");
    assert!(missing.iter().any(named), "{missing:#?}");
}
