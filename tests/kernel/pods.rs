//! Pods that are created, deleted, and replaced at the same address.

use std::io::Write;

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, decode, prefill};
use router_tests::traffic::{joined, listen, receive, send};

fn move_bytes(node: &Node, one: &netns::PodNetwork, bytes: u64) {
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, bytes);
    assert_eq!(receive(&server, bytes), sending.join().expect("the other thread"));
}

#[test]
fn a_new_pod_is_counted_and_a_deleted_one_is_removed() {
    let node = Node::new(Topology::Bridged);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    move_bytes(&node, &one, 1_000);
    let other = node.pod(3);
    agent.manifests.write(&[prefill("p0", one.address), decode("d0", other.address)]);
    // Its port of the bridge is attached to as well.
    agent.until("seen and attached", |loads| {
        let devices = loads["interfaces"].as_array().expect("a list");
        !pod(loads, "d0").is_null() && devices.iter().any(|d| d["name"] == *other.link)
    });
    move_bytes(&node, &other, 2_000);
    let loads = agent.until("counted", |loads| pair(loads, "d0", "", "engine")["closed"] == 1);
    assert_eq!(pair(&loads, "d0", "", "engine")["rx_bytes"], 2_000);
    assert_eq!(count(&pod(&loads, "d0")["rx"]["payload"]), 2_000);
    assert_eq!(count(&pod(&loads, "p0")["rx"]["payload"]), 1_000);

    agent.manifests.write(&[prefill("p0", one.address)]);
    let loads = agent.until("gone", |loads| pod(loads, "d0").is_null());
    assert!(pair(&loads, "d0", "", "engine").is_null());
    move_bytes(&node, &one, 500);
    let loads = agent.until("two", |loads| pair(loads, "p0", "", "engine")["closed"] == 2);
    assert_eq!(pair(&loads, "p0", "", "engine")["rx_bytes"], 1_500);
}

#[test]
fn the_same_address_with_another_uid_is_another_pod() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    move_bytes(&node, &one, 1_000);
    agent.until("counted", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    // One of its requests has no answer yet, and is never counted as finished.
    let listener = listen(&one.netns, one.address, ENGINE);
    let (mut client, server) = joined(&node.outside, &listener);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("asking");
    agent.until("asked", |loads| pod(loads, "p0")["in_flight"] == 1);
    let mut next = prefill("p0", one.address);
    next.uid = "another".into();
    agent.manifests.write(&[next]);
    let loads = agent.until("another", |loads| pod(loads, "p0")["uid"] == "another");
    assert_eq!(pair(&loads, "p0", "", "engine")["opened"].as_u64().unwrap_or_default(), 0);
    agent.until("forgotten", |loads| pod(loads, "p0")["in_flight"] == 0);
    drop(listener);
    move_bytes(&node, &one, 300);
    let loads = agent.until("counted", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    let counted = pair(&loads, "p0", "", "engine");
    assert_eq!((&counted["opened"], &counted["rx_bytes"]), (&1.into(), &300.into()));
    drop((client, server));
}

#[test]
fn metrics_equal_loads() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    move_bytes(&node, &one, 1_000);
    agent.until("counted", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    let page = agent.metrics();
    let labels = "{pod=\"default/p0\",peer=\"\",class=\"engine\"}";
    assert!(page.contains(&format!("pd_agent_pair_received_bytes_total{labels} 1000\n")), "{page}");
    assert!(page.contains("pd_agent_missing 0\n"), "{page}");
}
