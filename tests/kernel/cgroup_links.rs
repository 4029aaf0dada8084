//! The links of programs to cgroups: one for each program.

use std::os::unix::fs::MetadataExt;

use netns::{Node, Topology};
use router_tests::agent::{Agent, pair};
use router_tests::node_manifests::{ENGINE, prefill};
use router_tests::traffic::{joined, listen};

use crate::prepare::{Cgroup, cgroup2};

const LINKS: &str = "/sys/fs/bpf/pd-router/links";
const PROGRAMS: [&str; 4] =
    ["pd_cgroup_ingress", "pd_cgroup_egress", "pd_sock_ops", "pd_sock_close"];

/// The names of the pinned links of a program to cgroups.
fn links(node: &Node, program: &str) -> Vec<String> {
    let names = node.netns.sh(&format!("ls {LINKS}"));
    let prefix = format!("{program}_");
    names.lines().filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect()
}

/// Sockets below both cgroups would count twice.
#[test]
fn an_agent_with_another_cgroup_replaces_the_links_to_the_former() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let pods = [prefill("p0", one.address)];
    let below = Cgroup::new("links");
    let inode = |path: &std::path::Path| path.metadata().expect("a directory").ino();
    let path = below.0.display().to_string();
    drop(Agent::start_with(&node, &pods, &["--cgroup", &path]));
    for program in PROGRAMS {
        assert_eq!(links(&node, program), [format!("{program}_{}", inode(&below.0))]);
    }
    let agent = Agent::start(&node, &pods);
    for program in PROGRAMS {
        assert_eq!(links(&node, program), [format!("{program}_{}", inode(&cgroup2()))]);
    }
    drop(agent);
}

/// Connections would be followed by one program, and not be ended by the other.
#[test]
fn no_sock_ops_program_is_attached_if_one_of_two_cannot_be() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let inode = cgroup2().metadata().expect("a directory").ino();
    // No link can be pinned where a folder is.
    node.netns.sh(&format!("mkdir -p {LINKS}/pd_sock_close_{inode}"));
    let agent = Agent::start(&node, &[prefill("p0", one.address)]);
    assert_eq!(links(&node, "pd_sock_ops"), [""; 0]);
    let loads = agent.loads();
    let missing = loads["missing"].as_array().expect("a list");
    assert!(missing.iter().any(|line| line.to_string().contains("sock_ops:")), "{missing:#?}");
    // The tracepoint counts instead, and alone.
    let listener = listen(&one.netns, one.address, ENGINE);
    drop(joined(&node.outside, &listener));
    let loads = agent.until("closed", |loads| pair(loads, "p0", "", "engine")["closed"] == 1);
    assert_eq!(pair(&loads, "p0", "", "engine")["opened"], 1);
}
