//! Privileges that the agent keeps, those that it reports as missing, and what works without them.

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair, pod};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{ended, joined, listen, receive, send};
use serde_json::Value;

const BYTES: u64 = 54_321;

/// Moves bytes from outside to a pod's engine.
fn move_bytes(node: &Node, one: &netns::PodNetwork) {
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, BYTES);
    assert_eq!(receive(&server, BYTES), sending.join().expect("the other thread"));
    drop(client);
    ended(&server);
}

fn missing(loads: &Value) -> Vec<&str> {
    let missing = loads["missing"].as_array().expect("a list");
    missing.iter().filter_map(Value::as_str).collect()
}

/// The set of capabilities of that name in /proc/PID/status.
fn capabilities(agent: &Agent<'_>, set: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(set)).expect("the set");
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).expect("bits")
}

#[test]
fn privileges_that_are_not_needed_are_dropped() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    // CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF.
    let needed = [2, 12, 19, 38, 39].iter().fold(0, |set, bit| set | (1u64 << bit));
    for set in ["CapEff", "CapPrm"] {
        assert_eq!(capabilities(&agent, set) & !needed, 0, "{set}");
    }
    assert_eq!(missing(&agent.loads()), Vec::<&str>::new());
}

#[test]
fn a_missing_capability_is_reported_and_the_rest_works() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let pods = [prefill("p0", one.address)];
    let agent = Agent::start_by(&node, &pods, &["setpriv", "--bounding-set=-sys_ptrace"]);
    let loads = agent.loads();
    let [said] = missing(&loads)[..] else { panic!("{loads:#}") };
    assert!(said.contains("CAP_SYS_PTRACE") && said.contains("older than the agent"), "{said}");
    agent.until("logged", |_| agent.log().contains("CAP_SYS_PTRACE"));
    move_bytes(&node, &one);
    let all = |loads: &Value| pair(loads, "p0", "", "engine")["rx_bytes"] == BYTES;
    let loads = agent.until("counted by sockets", all);
    assert_eq!(count(&pod(&loads, "p0")["rx"]["payload"]), BYTES);
}

#[test]
fn without_a_cgroup2_mount_the_agent_makes_one_of_its_own() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    // Mounts of the node are its own. What it has of version 1 stays.
    node.netns.sh("mount -t tmpfs none /run
         for mount in $(grep ' cgroup2 ' /proc/self/mounts | cut -d' ' -f2); do umount $mount; done
         ! grep -q ' cgroup2 ' /proc/self/mounts");
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    assert!(node.netns.sh("cat /proc/self/mounts").contains("/run/pd-router/cgroup cgroup2"));
    move_bytes(&node, &one);
    let all = |loads: &Value| pair(loads, "p0", "", "engine")["rx_bytes"] == BYTES;
    assert_eq!(missing(&agent.until("counted by sockets", all)), Vec::<&str>::new());
}
