//! Nodes with cgroup v1 alone, with both versions, and with version two alone.

use netns::{Node, Topology};
use router_tests::agent::{Agent, pair};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{ended, joined, listen, receive, send};

use super::found;

const BYTES: u64 = 300_007;

/// Replaces the node's cgroup mounts, then counts one connection.
fn counts(mounts: &str, name: &str) -> String {
    let node = Node::new(Topology::Routed);
    node.netns.sh(&format!("umount /sys/fs/cgroup\n{mounts}"));
    let one = node.pod(2);
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    let listener = listen(&one.netns, one.address, ENGINE);
    let (client, server) = joined(&node.outside, &listener);
    let sending = send(&client, BYTES);
    assert_eq!(receive(&server, BYTES), sending.join().expect("the other thread"));
    drop(client);
    ended(&server);
    drop(server);
    let loads = agent.until("closed", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    // The tracepoint alone would know of no bytes.
    assert_eq!(pair(&loads, "p0", "", "engine")["rx_bytes"], BYTES);
    // Other tests' soft RoCE devices may be there, which count no bytes before Linux 7.2.
    let missing = loads["missing"].as_array().expect("a list").iter();
    let missing: Vec<_> = missing.filter_map(|line| line.as_str()).collect();
    assert!(missing.iter().all(|line| line.starts_with("RDMA")), "{missing:#?}");
    found(name, "connections and bytes counted");
    node.netns.sh("cat /proc/mounts")
}

#[test]
fn connections_count_with_cgroup_version_two_alone() {
    counts("mount -t cgroup2 cgroup2 /sys/fs/cgroup", "cgroup v2");
}

#[test]
fn connections_count_on_a_node_with_both_versions() {
    counts(
        "mount -t tmpfs tmpfs /sys/fs/cgroup
         mkdir /sys/fs/cgroup/net_cls /sys/fs/cgroup/freezer /sys/fs/cgroup/unified
         mount -t cgroup -o net_cls net_cls /sys/fs/cgroup/net_cls
         mount -t cgroup -o freezer freezer /sys/fs/cgroup/freezer
         mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        "cgroup v1 and v2",
    );
}

#[test]
fn an_agent_mounts_a_version_two_of_its_own_beside_version_one_alone() {
    let mounts = counts(
        "mount -t tmpfs tmpfs /sys/fs/cgroup
         mkdir /sys/fs/cgroup/net_cls /sys/fs/cgroup/freezer
         mount -t cgroup -o net_cls net_cls /sys/fs/cgroup/net_cls
         mount -t cgroup -o freezer freezer /sys/fs/cgroup/freezer",
        "cgroup v1 alone",
    );
    // The agent's own mount is in its namespace of mounts, which is the node's.
    assert!(mounts.contains("/run/pd-router/cgroup cgroup2"), "{mounts}");
}
