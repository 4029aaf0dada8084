//! Ports that neither a manifest nor a flag names.

use std::collections::BTreeSet;

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair};
use router_tests::node_manifests::{decode, prefill};
use serde_json::Value;

use crate::engines::{Engine, generate, page};

/// Where a pod's ranks take control messages, as the agent learned it.
fn controls(loads: &Value, name: &str) -> BTreeSet<String> {
    let learned = loads["learned_ports"].as_array().expect("a list").iter();
    let own = learned.filter(|ports| ports["pod"] == *format!("default/{name}"));
    let controls = own.flat_map(|ports| ports["control"].as_array().expect("a list"));
    controls.map(|control| control.as_str().expect("an address").to_owned()).collect()
}

/// Every port may carry KV here: only learned ports distinguish control messages.
fn learns_from(version: &str) {
    let node = Node::new(Topology::Routed);
    let (one, other) = (node.pod(2), node.pod(3));
    let named = [prefill("p0", one.address), decode("d0", other.address)];
    let agent = Agent::start_with(&node, &named, &["--kv-ports", "1-65535"]);
    let flags = ["--engine", version, "--dp-size", "3"];
    let start =
        |pod: &netns::PodNetwork, role| Engine::start_in(&pod.netns, pod.address, role, &flags);
    let _engines = [start(&one, "prefill"), start(&other, "decode")];
    let real = || -> BTreeSet<String> {
        let kv = page(&node, one.address, "/sim/kv");
        let ranks = kv["ranks"].as_array().expect("ranks").iter();
        ranks.map(|rank| rank["control"].as_str().expect("an address").to_owned()).collect()
    };
    let ports = real();
    assert_eq!(ports.len(), 3);
    agent.until("learned", |loads| controls(loads, "p0") == ports);
    (0..3).for_each(|_| generate(&node, one.address, other.address, 10));
    let loads = agent.until("control messages and KV", |loads| {
        count(&pair(loads, "d0", "p0", "kv_control")["tx_bytes"]) > 0
            && loads["kv"].as_array().expect("a list").iter().any(|kv| count(&kv["bytes"]) > 0)
    });
    let control = &pair(&loads, "d0", "p0", "kv_control");
    assert!((1..=3).contains(&count(&control["opened"])), "{control:#}");
}

#[test]
fn control_ports_are_learned_from_the_bootstrap_server() {
    learns_from("0.5");
}

#[test]
fn control_ports_are_learned_from_an_old_bootstrap_server_too() {
    learns_from("0.4.10");
}
