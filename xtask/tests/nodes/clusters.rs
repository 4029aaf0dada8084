//! `cargo xtask cluster` as a user runs it: real nodes that are ready, and nothing that stays behind.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::site::{Site, clusters};

const READY: &str =
    r#"{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}"#;

#[test]
fn two_nodes_are_ready_serve_a_service_and_leave_nothing() {
    let site = Site::new("two-nodes");
    let network = site.network();
    site.done(&["up"], &["--nodes", "2"]);
    let ready =
        site.done(&["kubectl"], &["get", "nodes", "--output", &format!("jsonpath={READY}")]);
    assert_eq!(ready, "node-1=True node-2=True ");
    assert!(site.done(&["up"], &["--nodes", "2"]).contains("is up"), "a second time is no error");

    // A pod is reached through a Service: the pods' network, routes between nodes and kube-proxy.
    let expose =
        ["expose", "deployment/coredns", "--name=health", "--port=8080", "-n", "kube-system"];
    site.done(&["kubectl"], &expose);
    let scale = ["scale", "deployment/coredns", "--replicas=2", "-n", "kube-system"];
    site.done(&["kubectl"], &scale);
    let rollout =
        ["rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=120s"];
    site.done(&["kubectl"], &rollout);
    let address =
        ["get", "service/health", "-n", "kube-system", "--output=jsonpath={.spec.clusterIP}"];
    let url = format!("http://{}:8080/health", site.done(&["kubectl"], &address));
    let curl = ["curl", "-sS", "--retry", "20", "--retry-all-errors", "--retry-delay", "1", &url];
    assert_eq!(site.done(&["exec"], &curl), "OK");

    assert_eq!(site.network(), network, "while it runs");
    assert!(!site.traces().is_empty(), "what is looked for is there while it runs");
    site.done(&["down"], &[]);
    assert_eq!(site.traces(), BTreeSet::new());
    assert_eq!(site.network(), network);
    site.done(&["down"], &["--logs"]);
    let mut files = fs::read_dir(clusters()).expect("clusters").filter_map(Result::ok);
    let left = files.find(|file| file.file_name().to_string_lossy().starts_with(&site.name));
    assert!(left.is_none(), "{left:?}");
}

#[test]
fn an_up_that_is_killed_leaves_nothing() {
    let site = Site::new("killed");
    let network = site.network();
    for step in ["making the namespaces of 2 machines ...", "waiting for the API server ..."] {
        let up = site.up_until(step);
        assert!(!site.traces().is_empty(), "{step}");
        kill(Pid::from_raw(up.cast_signed()), Signal::SIGKILL).expect("killing `up`");
        site.wait_until_gone();
        assert_eq!(site.network(), network, "{step}");
    }
}

#[test]
fn two_clusters_do_not_meet_and_down_removes_what_a_killed_supervisor_left() {
    let (one, other) = (Site::new("one"), Site::new("other"));
    one.done(&["up"], &["--nodes", "1"]);
    other.done(&["up"], &["--nodes", "1"]);
    let address = ["get", "node/node-1", "--output=jsonpath={.status.addresses[0].address}"];
    let [mine, theirs] = [&one, &other].map(|site| site.done(&["kubectl"], &address));
    assert_ne!(mine, theirs);
    let kubelet = |address: &str| format!("https://{address}:10250/healthz");
    let curl = ["curl", "-sSk", "--max-time", "2"];
    assert!(one.xtask(&["exec"], &[&curl[..], &[&kubelet(&mine)]].concat()).status.success());
    assert!(!one.xtask(&["exec"], &[&curl[..], &[&kubelet(&theirs)]].concat()).status.success());

    let lock = clusters().join(format!("{}.lock", one.name));
    let supervisor = fs::read_to_string(lock).expect("the supervisor's id").parse().expect("an id");
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).expect("killing the supervisor");
    one.done(&["down"], &[]);
    assert_eq!(one.traces(), BTreeSet::new());
    other.done(&["kubectl"], &["get", "--raw", "/readyz"]);
}
