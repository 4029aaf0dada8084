//! A program that embeds the eBPF object needs no file of it.

use std::process::Command;

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen, receive, send};

const OBJECT: &str = "PD_ROUTER_EBPF_OBJECT";

#[test]
fn an_agent_starts_from_what_its_program_carries() {
    const BYTES: u64 = 54_321;
    let carrier = std::env::var("PD_ROUTER_CARRIER_BIN");
    let carrier = carrier.expect("PD_ROUTER_CARRIER_BIN: run `cargo xtask test kernel`");
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    // In the place of the one that the words after these name.
    let run = format!("shift; exec {carrier} \"$@\"");
    let by = ["env", "-u", OBJECT, "sh", "-c", &run, "sh"];
    let agent = Agent::start_by(&node, &[prefill("p0", one.address)], &by);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, BYTES);
    assert_eq!(receive(&server, BYTES), sending.join().expect("the other thread"));
    drop((client, server));
    let loads = agent.until("counted by its socket", |loads| {
        pair(loads, "p0", "", "engine")["rx_bytes"] == BYTES
    });
    assert_eq!(count(&pod(&loads, "p0")["rx"]["payload"]), BYTES);
    assert_eq!(loads["missing"].as_array().map(Vec::len), Some(0), "{loads:#}");
}

#[test]
fn an_agent_without_an_object_names_the_flag() {
    let binary = std::env::var("PD_ROUTER_BIN").expect("PD_ROUTER_BIN");
    let node = Node::new(Topology::Routed);
    let output = node.netns.run(move || {
        let mut command = Command::new(binary);
        command.args(["agent", "--node-name", "node-1", "--manifests", "/"]).env_remove(OBJECT);
        command.output().expect("starting the agent")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--ebpf-object"), "{said}");
}
