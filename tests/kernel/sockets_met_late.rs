//! Sockets that the agent meets late, or shares with other programs.

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{ended, joined, listen, receive, send};

use crate::other_programs::OptionReader;
use crate::prepare::cgroup2;
use crate::requests::pass;

const BEFORE: u64 = 3_000_000;
const AFTER: u64 = 1_000_000;

fn move_bytes((from, to): (&std::net::TcpStream, &std::net::TcpStream), bytes: u64) {
    let sending = send(from, bytes);
    assert_eq!(receive(to, bytes), sending.join().expect("the sender"));
}

/// What is reported of an open connection that was met late: its bytes from then on, and no more.
fn is_of_the_present(agent: &Agent<'_>) {
    let loads = agent.until("the new bytes", |loads| {
        let reported = pair(loads, "p0", "", "engine")["tx_bytes"].as_u64();
        reported.is_some_and(|reported| reported > AFTER / 2)
    });
    let reported = count(&pair(&loads, "p0", "", "engine")["tx_bytes"]);
    assert!(reported <= AFTER, "{reported} of {AFTER}");
}

#[test]
fn an_agent_with_another_layout_counts_open_connections_from_its_start() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let mut agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    move_bytes((&server, &client), BEFORE);
    agent.until("counted", |loads| pair(loads, "p0", "", "engine")["tx_bytes"] == BEFORE);
    agent.kill();
    // Another version's settings: the first field is the layout.
    node.netns.sh("bpftool map update pinned /sys/fs/bpf/pd-router/SETTINGS key 0 0 0 0 value \
        99 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0");
    agent.restart();
    agent.until("entered", |loads| pair(loads, "p0", "", "engine")["preexisting"] == 1);
    move_bytes((&server, &client), AFTER);
    is_of_the_present(&agent);
}

#[test]
fn a_pod_does_not_get_what_its_address_moved_before_it() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    move_bytes((&server, &client), BEFORE);
    agent.until("counted", |loads| pair(loads, "p0", "", "engine")["tx_bytes"] == BEFORE);
    let mut next = prefill("p0", one.address);
    next.uid = "another".into();
    agent.manifests.write(&[next]);
    agent.until("entered", |loads| {
        pod(loads, "p0")["uid"] == "another" && pair(loads, "p0", "", "engine")["preexisting"] == 1
    });
    move_bytes((&server, &client), AFTER);
    is_of_the_present(&agent);
}

/// The callbacks of a socket are those of all programs: one that reads or writes TCP options goes on.
#[test]
fn callbacks_of_another_sock_ops_program_go_on() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    // Attached first, so that it runs first.
    let other = OptionReader::attach(&cgroup2(), one.address);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    for number in 1..=10 {
        let (client, server) = joined(&node.outside, &listener);
        pass(&client, &server, b"GET / HTTP/1.1\r\n\r\n");
        // The kernel asks for every packet that is out of the ordinary, such as a FIN.
        drop(client);
        ended(&server);
        assert!(other.calls() >= number, "{} calls after {number} ends", other.calls());
    }
    agent.until("closed", |loads| pair(loads, "p0", "", "engine")["closed"] == 10);
}
