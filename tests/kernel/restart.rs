//! Agents that crash, restart, meet other layouts, and clean up.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, decode, prefill};
use router_tests::traffic::{joined, listen};

const GET: &[u8] = b"GET /health HTTP/1.1\r\nhost: e\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_killed_agent_leaves_no_gap_in_any_count() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let mut agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (mut open_client, mut open_server) = joined(&node.outside, &listener);
    let (mut client, mut server) = joined(&node.outside, &listener);
    open_client.write_all(GET).expect("set up as meant");
    open_server.read_exact(&mut [0; GET.len()]).expect("set up as meant");
    let running = Arc::new(AtomicBool::new(true));
    let asked = Arc::new(AtomicU64::new(0));
    let (run, made) = (Arc::clone(&running), Arc::clone(&asked));
    let serving = std::thread::spawn(move || {
        while server.read_exact(&mut [0; GET.len()]).is_ok() {
            server.write_all(ANSWER).expect("set up as meant");
        }
    });
    let asking = std::thread::spawn(move || {
        while run.load(Ordering::Relaxed) {
            client.write_all(GET).expect("set up as meant");
            client.read_exact(&mut [0; ANSWER.len()]).expect("set up as meant");
            made.fetch_add(1, Ordering::Relaxed);
        }
    });
    for _ in 0..3 {
        let before = asked.load(Ordering::Relaxed);
        agent.kill();
        while asked.load(Ordering::Relaxed) < before + 50 {
            std::thread::yield_now();
        }
        agent.restart();
    }
    running.store(false, Ordering::Relaxed);
    asking.join().expect("the other thread");
    serving.join().expect("the other thread");
    let asked = asked.load(Ordering::Relaxed);
    let loads = agent.until("all answers", |loads| count(&pod(loads, "p0")["finished"]) == asked);
    let p0 = pod(&loads, "p0");
    // The one that is still open was asked of the first agent.
    assert_eq!((count(&p0["started"]), count(&p0["in_flight"])), (asked + 1, 1));
    assert_eq!((count(&p0["aborted"]), count(&p0["reopened"])), (0, 0));
    let loads = agent.until("one closed", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    let counted = pair(&loads, "p0", "", "engine");
    assert_eq!((&counted["opened"], &counted["preexisting"]), (&2.into(), &0.into()));
    assert_eq!(counted["tx_bytes"], asked * ANSWER.len() as u64);
    drop((open_client, open_server));
    let loads = agent.until("both closed", |loads| pair(loads, "p0", "", "engine")["closed"] == 2);
    let counted = pair(&loads, "p0", "", "engine");
    assert_eq!(counted["rx_bytes"], (asked + 1) * GET.len() as u64);
    agent.until("none in flight", |loads| count(&pod(loads, "p0")["in_flight"]) == 0);
}

#[test]
fn clsact_filters_are_reused_and_never_doubled() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let pods = [prefill("p0", one.address)];
    let mut agent = Agent::start_with(&node, &pods, &["--tc", "clsact"]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (mut client, mut server) = joined(&node.outside, &listener);
    let mut ask = || {
        client.write_all(GET).expect("set up as meant");
        server.read_exact(&mut [0; GET.len()]).expect("set up as meant");
        server.write_all(ANSWER).expect("set up as meant");
        client.read_exact(&mut [0; ANSWER.len()]).expect("set up as meant");
    };
    ask();
    agent.until("one", |loads| count(&pod(loads, "p0")["finished"]) == 1);
    agent.kill();
    ask();
    agent.restart();
    ask();
    agent.until("three", |loads| count(&pod(loads, "p0")["finished"]) == 3);
    let payload = count(&pod(&agent.read_again(), "p0")["tx"]["payload"]);
    assert_eq!(payload, 3 * ANSWER.len() as u64);
    agent.cleanup();
    let left = node.netns.sh(&format!("tc filter show dev {} ingress", one.link));
    assert!(!left.contains("pd_"), "{left}");
}

#[test]
fn clsact_filters_are_replaced_by_links() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let pods = [prefill("p0", one.address)];
    drop(Agent::start_with(&node, &pods, &["--tc", "clsact"]));
    let agent = Agent::start_with(&node, &pods, &["--tc", "tcx"]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (mut client, mut server) = joined(&node.outside, &listener);
    client.write_all(GET).expect("set up as meant");
    server.read_exact(&mut [0; GET.len()]).expect("set up as meant");
    server.write_all(ANSWER).expect("set up as meant");
    client.read_exact(&mut [0; ANSWER.len()]).expect("set up as meant");
    agent.until("one", |loads| count(&pod(loads, "p0")["finished"]) == 1);
    let loads = agent.read_again();
    assert_eq!(count(&pod(&loads, "p0")["tx"]["payload"]), ANSWER.len() as u64, "{loads:#}");
}

/// A pod is deleted while the agent runs, comes back, and is deleted while there is no agent.
fn detaches_from_interfaces_without_pod(tc: &str, attached: impl Fn(&Node, &str) -> bool) {
    let node = Node::new(Topology::Routed);
    let (one, other) = (node.pod(2), node.pod(3));
    let both = [prefill("p0", one.address), decode("d0", other.address)];
    let mut agent = Agent::start_with(&node, &both, &["--tc", tc]);
    assert!(attached(&node, &one.link) && attached(&node, &other.link));
    agent.manifests.write(&both[..1]);
    agent.until("detached", |_| !attached(&node, &other.link));
    agent.manifests.write(&both);
    agent.until("attached again", |_| attached(&node, &other.link));
    agent.kill();
    agent.manifests.write(&both[..1]);
    assert!(attached(&node, &other.link), "programs outlive the agent");
    agent.restart();
    assert!(attached(&node, &one.link) && !attached(&node, &other.link));
    agent.cleanup();
    assert!(!attached(&node, &one.link));
}

#[test]
fn tcx_links_of_interfaces_without_pod_are_removed() {
    detaches_from_interfaces_without_pod("tcx", |node, link| {
        let shown = node.netns.sh(&format!("ip -o link show dev {link}"));
        let index = shown.split(':').next().expect("an index");
        let pins = node.netns.sh("ls /sys/fs/bpf/pd-router/links 2>/dev/null || true");
        pins.lines().any(|pin| pin == format!("pd_pod_egress_{index}"))
    });
}

#[test]
fn clsact_filters_of_interfaces_without_pod_are_removed() {
    detaches_from_interfaces_without_pod("clsact", |node, link| {
        node.netns.sh(&format!("tc filter show dev {link} egress")).contains("pd_pod_egress")
    });
}

#[test]
fn cleanup_removes_programs_links_and_maps() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let mut agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let pins = "ls /sys/fs/bpf; ls -R /sys/fs/bpf/pd-router 2>/dev/null || true";
    assert!(node.netns.sh(pins).contains("pd_pod_ingress"));
    agent.kill();
    agent.cleanup();
    assert!(!node.netns.sh(pins).contains("pd-router"), "{}", node.netns.sh(pins));
    // Nothing to remove is no error, and another agent starts from nothing.
    agent.cleanup();
    agent.restart();
    assert_eq!(count(&pod(&agent.loads(), "p0")["started"]), 0);
}

#[test]
fn maps_of_another_layout_are_replaced() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let mut agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let connection = joined(&node.outside, &listener);
    agent.until("counted", |loads| pair(loads, "p0", "", "engine")["opened"] == 1);
    agent.kill();
    // Another version's settings: the first field is the layout.
    node.netns.sh("bpftool map update pinned /sys/fs/bpf/pd-router/SETTINGS key 0 0 0 0 value \
        99 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0");
    agent.restart();
    let loads =
        agent.until("entered again", |loads| pair(loads, "p0", "", "engine")["preexisting"] == 1);
    assert_eq!(pair(&loads, "p0", "", "engine")["opened"], 0);
    drop(connection);
    agent.until("and closed", |loads| pair(loads, "p0", "", "engine")["open"] == 0);
}
