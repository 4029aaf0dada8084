//! What an operator sees with bpftool beside a live agent.

use netns::{Node, Topology};
use router_tests::agent::Agent;
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen, receive, send};
use serde_json::Value;

#[test]
fn bpftool_shows_named_fields_with_the_right_numbers_and_named_programs() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, 4_321);
    assert_eq!(receive(&server, 4_321), sending.join().expect("the other thread"));
    drop((client, server));
    agent.until("closed", |loads| {
        router_tests::agent::pair(loads, "p0", "", "engine")["closed"] == 1
    });
    let dump = |map: &str| -> Vec<Value> {
        let text =
            node.netns.sh(&format!("bpftool -j map dump pinned /sys/fs/bpf/pd-router/{map}"));
        serde_json::from_str(&text).expect("JSON")
    };
    // With BTF, bpftool adds the entries with their fields' names.
    let pods = dump("PODS");
    let named = &pods[0]["formatted"];
    let std::net::IpAddr::V4(v4) = one.address else { panic!("IPv4") };
    let mut address = vec![0; 10];
    address.extend([255, 255]);
    address.extend(v4.octets());
    assert_eq!(named["key"]["address"], Value::from(address), "{named:#}");
    assert_eq!(named["value"]["role"], 1);
    assert_eq!(named["value"]["http_ports"][0], ENGINE);
    let id = &named["value"]["id"];
    let pairs = dump("PAIRS");
    let engine = pairs.iter().map(|pair| &pair["formatted"]).find(|pair| {
        pair["key"]["pod"] == *id && pair["key"]["peer"] == 0 && pair["key"]["class"] == 1
    });
    let stats = &engine.expect("the engine's row")["value"];
    assert_eq!((&stats["opened"], &stats["closed"]), (&1.into(), &1.into()), "{stats:#}");
    assert_eq!(stats["rx_bytes"], 4_321, "{stats:#}");
    let traffic = dump("POD_TRAFFIC");
    let own = traffic.iter().map(|entry| &entry["formatted"]).find(|entry| entry["key"] == *id);
    let cpus = own.expect("the pod's row")["values"].as_array().expect("a value per CPU");
    let received = cpus.iter().map(|cpu| cpu["value"]["rx_payload"].as_u64().expect("a count"));
    assert_eq!(received.sum::<u64>(), 4_321);

    let programs = node.netns.sh("bpftool prog show");
    for name in ["pd_pod_ingress", "pd_pod_egress", "pd_sock_ops", "pd_sock_state"] {
        assert!(programs.contains(name), "no {name}: {programs}");
    }
}
