//! Pods with the host's network are distinguished by the sockets of their processes.

use std::path::PathBuf;

use netns::{Node, Topology};
use router_tests::agent::{Agent, count, pair};
use router_tests::node_manifests::{BOOTSTRAP, ENGINE, decode, prefill};
use serde_json::json;

use crate::engines::{Engine, generate, page};
use crate::kv::{FRAMING, sent_by};

/// A UID as the API server makes them: the kubelet's cgroups are recognised by its form.
const UID: &str = "7b3a1d52-9c0e-4f4e-8a56-0d9f2b6c1e77";

/// A cgroup of the test's own, below a folder of its own; both go with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn with(root: &str, name: &str, pid: u32) -> Cgroup {
        let path = PathBuf::from(format!("{root}/pd-router-test-{}", std::process::id()));
        let path = path.join(name);
        std::fs::create_dir_all(&path).expect("a cgroup");
        std::fs::write(path.join("cgroup.procs"), pid.to_string()).expect("moving the process");
        Cgroup(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        _ = std::fs::remove_dir(&self.0);
        _ = self.0.parent().map(std::fs::remove_dir);
    }
}

/// The first hierarchy of cgroups of a version that is mounted here.
fn hierarchy(version: &str) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    // Controllers may forbid a process without settings of their own; a hierarchy without any,
    // and that of process numbers, do not.
    fields.find_map(|line| {
        let fits = line.get(2) == Some(&version)
            && (version == "cgroup2" || line[3].contains("pids") || line[3].contains("name="));
        fits.then(|| line[1].to_owned())
    })
}

/// A decode on the host's network, whose KV port no manifest names.
fn is_recognised(root: &str, cgroup: &str) {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let host = node.addresses().0;
    let mut named = [prefill("p0", one.address), decode("d0", host)];
    named[1].host_network = true;
    named[1].uid = UID.to_owned();
    let agent = Agent::start(&node, &named);
    let prefill = Engine::start(&one, "prefill");
    let decode = Engine::start_in(&node.netns, host, "decode", &[]);
    let cgroup = Cgroup::with(root, cgroup, decode.pid());
    let kv = page(&node, host, "/sim/kv");
    let port = |address: &serde_json::Value| {
        let address: std::net::SocketAddr =
            address.as_str().expect("an address").parse().expect("an address");
        address.port()
    };
    let mut ports = vec![ENGINE, port(&kv["data"]), port(&kv["ranks"][0]["control"])];
    ports.sort_unstable();
    agent.until("its ports", |loads| {
        let learned = loads["learned_ports"].as_array().expect("a list");
        learned.iter().any(|pod| pod["pod"] == "default/d0" && pod["listening"] == json!(ports))
    });
    generate(&node, one.address, host, 10);
    let sent = sent_by(&node, &one);
    let (bytes, transfers) = (sent[0].1, sent[0].2);
    drop((prefill, decode));
    let loads = agent.until("its KV", |loads| {
        let open = &pair(loads, "d0", "p0", "kv")["open"];
        let all = loads["kv"].as_array().expect("a list");
        open == 0 && all.iter().any(|kv| count(&kv["bytes"]) == bytes + transfers * FRAMING)
    });
    assert_eq!(loads["kv"][0]["decode"], "default/d0");
    assert_eq!(pair(&loads, "d0", "p0", "kv")["rx_bytes"], bytes + transfers * FRAMING);
    // Its port of a connection that it opens itself is unknown, so the other end names no peer.
    assert!(count(&pair(&loads, "p0", "", "bootstrap")["opened"]) > 0, "on {BOOTSTRAP}");
    drop(cgroup);
}

#[test]
fn a_pod_with_the_hosts_network_is_recognised_by_its_cgroups() {
    let hierarchies = ["cgroup2", "cgroup"].map(hierarchy);
    let [two, one] = &hierarchies;
    assert!(two.is_some() || one.is_some(), "no cgroups at all");
    // As systemd has it, and as the kubelet does by itself.
    if let Some(root) = two {
        let under = UID.replace('-', "_");
        is_recognised(root, &format!("kubepods-burstable-pod{under}.slice"));
    }
    if let Some(root) = one {
        is_recognised(root, &format!("pod{UID}"));
    }
}
