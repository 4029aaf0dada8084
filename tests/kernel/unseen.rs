//! What the node does not see is named, and what it sees of it is right all the same.

use std::io::Read;

use crate::agent::{Agent, count, pair, pod};
use crate::manifests::{ENGINE, decode, prefill};
use crate::node::{Node, Topology};
use crate::traffic::{joined, listen, receive, send};

const BYTES: u64 = 5_000_011;

#[test]
fn a_pod_whose_interface_is_its_own_is_named_and_its_connections_count() {
    let node = Node::new(Topology::Routed);
    let (one, apart) = (node.pod(2), node.pod_apart(3));
    let agent = Agent::start(&node, &[prefill("p0", one.address), decode("d0", apart.address)]);
    let listener = listen(&apart.space, apart.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&server, BYTES);
    assert_eq!(receive(&client, BYTES), sending.join().expect("the other thread"));
    let loads = agent.until("named", |loads| {
        let missing = loads["missing"].as_array().expect("a list");
        missing.iter().any(|said| said.as_str().is_some_and(|said| said.contains("default/d0")))
    });
    assert_eq!(loads["missing"].as_array().map(Vec::len), Some(1), "{loads:#}");
    drop(server);
    (&client).read_to_end(&mut Vec::new()).expect("the end");
    drop(client);
    let sent = |loads: &serde_json::Value| pair(loads, "d0", "", "engine")["tx_bytes"] == BYTES;
    agent.until("counted by its sockets", sent);
}

/// sock_ops tells the receiver of its bytes when the connection's state changes: until then the
/// packets do.
#[test]
fn the_rate_of_a_pure_receiver_is_live() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let mut elsewhere = prefill("p0", node.addresses().1);
    elsewhere.node = "node-2";
    let agent = Agent::start(&node, &[elsewhere, decode("d0", one.address)]);
    let listener = listen(&one.space, one.address, 15_432);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, BYTES);
    assert_eq!(receive(&server, BYTES), sending.join().expect("the other thread"));
    let loads = agent.until("all of it, and a rate", |loads| {
        let pair = pair(loads, "d0", "p0", "kv");
        pair["arrived_bytes"].as_u64() >= Some(BYTES)
            && pair["rx_bytes_per_second"].as_f64() > Some(0.0)
    });
    let counted = pair(&loads, "d0", "p0", "kv");
    assert_eq!(counted["open"], 1);
    let kv = &loads["kv"][0];
    assert_eq!((&kv["decode"], &kv["counted_at"]), (&"default/d0".into(), &"decode".into()));
    assert!(kv["bytes_per_second"].as_f64() > Some(0.0), "{kv:#}");
    // What is sent twice arrives twice.
    let spare = 65_536 * 8;
    assert!(count(&counted["arrived_bytes"]) <= BYTES + spare, "{counted:#}");
    assert_eq!(count(&pod(&loads, "d0")["rx"]["payload"]), count(&counted["arrived_bytes"]));
    drop((client, server));
    let all = |loads: &serde_json::Value| pair(loads, "d0", "p0", "kv")["rx_bytes"] == BYTES;
    agent.until("exact at its end", all);
}
