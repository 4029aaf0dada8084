//! A pod whose traffic does not pass the node is named, and its connections are counted. One that no
//! program sees is unknown.

use std::io::Read;

use netns::{Node, Topology};
use router_tests::agent::{Agent, pair, pod};
use router_tests::node_manifests::{ENGINE, decode, prefill};
use router_tests::traffic::{joined, listen, receive, send};

const BYTES: u64 = 5_000_011;

#[test]
fn a_pod_whose_interface_is_its_own_is_named_and_its_connections_count() {
    let node = Node::new(Topology::Routed);
    let (one, apart) = (node.pod(2), node.pod_apart(3));
    let agent = Agent::start(&node, &[prefill("p0", one.address), decode("d0", apart.address)]);
    let listener = listen(&apart.netns, apart.address, ENGINE);
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

/// It may be busy on a way that no program is on, such as a virtual machine with a card of its own.
#[test]
fn a_pod_of_which_nothing_was_seen_has_no_record_for_gateways() {
    let node = Node::new(Topology::Routed);
    let apart = node.pod_apart(2);
    let agent = Agent::start(&node, &[prefill("p0", apart.address)]);
    assert!(pod(&agent.read_again(), "p0").is_object());
    assert_eq!(agent.first_report().pods, []);
    let listener = listen(&apart.netns, apart.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, 1);
    assert_eq!(receive(&server, 1), sending.join().expect("the other thread"));
    agent.until("with a record", |_| agent.first_report().pods.len() == 1);
}

#[test]
fn a_pod_that_no_program_sees_is_unknown_and_named() {
    is_unknown_without("pd_cgroup_*");
}

#[test]
fn a_pod_whose_received_bytes_no_program_sees_is_unknown_and_named() {
    is_unknown_without("pd_cgroup_ingress_*");
}

/// Whether the agent's metrics have a sample of a pod.
fn has_sample(agent: &Agent<'_>, metric: &str, pod: &str) -> bool {
    let sample = format!("pd_agent_{metric}{{pod=\"default/{pod}\"");
    agent.metrics().lines().any(|line| line.starts_with(&sample))
}

/// The links of some cgroup programs go, as by another tool's hand; sock_ops stays.
fn is_unknown_without(links: &str) {
    const REQUESTS: [&str; 3] = ["pod_requests_total", "pod_load_score", "pod_ttft_seconds_count"];
    let node = Node::new(Topology::Routed);
    let host = node.addresses().0;
    let mut named = [prefill("p0", host)];
    named[0].host_network = true;
    let agent = Agent::start(&node, &named);
    let listener = listen(&node.netns, host, ENGINE);
    for metric in REQUESTS {
        assert!(has_sample(&agent, metric, "p0"), "{}", agent.metrics());
    }
    node.netns.sh(&format!("rm /sys/fs/bpf/pd-router/links/{links}"));
    let (client, server) = joined(&node.netns, &listener);
    let is_unseen = |loads: &serde_json::Value| {
        let missing = loads["missing"].as_array().expect("a list");
        let named = |line: &serde_json::Value| {
            let line = line.as_str().unwrap_or_default();
            line.contains("default/p0") && line.contains("cgroup programs do not run")
        };
        missing.iter().any(named) && pod(loads, "p0")["counted_at"].is_null()
    };
    agent.until("unseen", |loads| {
        // Traffic goes on: each second is compared with the one before.
        for (from, to) in [(&client, &server), (&server, &client)] {
            let sending = send(from, 1_000);
            assert_eq!(receive(to, 1_000), sending.join().expect("the other thread"));
        }
        is_unseen(loads)
    });
    agent.until("without a record for gateways", |_| agent.first_report().pods.is_empty());
    for metric in REQUESTS {
        assert!(!has_sample(&agent, metric, "p0"), "{}", agent.metrics());
    }
    assert!(has_sample(&agent, "pod_receive_bytes_total", "p0"), "{}", agent.metrics());
}
