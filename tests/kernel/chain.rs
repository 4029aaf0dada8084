//! Counted packets pass on unaltered, and through other programs of the hook.

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pod};
use router_tests::node_manifests::{ENGINE, decode, prefill};
use router_tests::traffic::{ended, joined, listen, receive, send};

const SECOND: &str = "/sys/fs/bpf/second";

/// Two agents are two programs on each hook. In both orders, both must see every packet.
#[test]
fn a_program_behind_ours_on_the_same_hook_still_runs() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    // A decode, so that only the test opens connections to it.
    let pods = [decode("p0", one.address)];
    let behind = Agent::start(&node, &pods);
    // Attaches before the first.
    let ahead = behind.beside(&pods, &["--pin-dir", SECOND], 9912);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, 100_000);
    assert_eq!(receive(&server, 100_000), sending.join().expect("the other thread"));
    for agent in [&behind, &ahead] {
        let all = |loads: &serde_json::Value| count(&pod(loads, "p0")["rx"]["payload"]) >= 100_000;
        agent.until("counted", all);
    }
    drop((client, server));
    let packets = |agent: &Agent| count(&pod(&agent.loads(), "p0")["rx"]["packets"]);
    ahead.until("the same", |_| packets(&ahead) == packets(&behind));
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent() {
    const GIBIBYTE: u64 = 1 << 30;
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, GIBIBYTE);
    assert_eq!(receive(&server, GIBIBYTE), sending.join().expect("the other thread"));
    drop(client);
    ended(&server);
    drop(server);
    let loads = agent.until("closed", |loads| {
        router_tests::agent::pair(loads, "p0", "", "engine")["closed"] == 1
    });
    assert_eq!(router_tests::agent::pair(&loads, "p0", "", "engine")["rx_bytes"], GIBIBYTE);
}
