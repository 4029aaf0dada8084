//! What clients notice of a cluster's changes and faults, under a steady load of streams.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::walk::{By, LoadBalancer, SYSTEM, Walk};

/// From the start of the load to the fault.
const FAULT_AT: Duration = Duration::from_secs(5);
/// Longer than nodes may be silent before Kubernetes marks their pods as not ready (40 s).
const AWAY: Duration = Duration::from_secs(50);
const GATEWAY: &str = "deployment/pd-router-gateway";

/// Puts load on the fleet, lets something happen, and returns the requests that failed.
fn failed(walk: &Walk, seconds: u32, what: &str, happens: impl FnOnce()) -> Vec<Value> {
    let load = walk.load(seconds);
    std::thread::sleep(FAULT_AT);
    happens();
    let run = load.result();
    let requests = run["requests"].as_array().expect("a list");
    assert!(requests.len() as u32 > 5 * seconds, "{what}: {} requests", requests.len());
    let failed = requests.iter().filter(|one| one["error"].is_string());
    let failed: Vec<Value> = failed.cloned().collect();
    println!("{what}: {} of {} requests failed", failed.len(), requests.len());
    failed
}

/// Whether a request found no gateway.
fn is_refused(error: &str) -> bool {
    error.contains("client error (Connect)")
}

#[test]
fn clients_notice_little_of_what_happens_to_a_cluster() {
    let walk = Walk::start("faults");
    let _cloud = LoadBalancer::start(&walk.site);
    walk.follow(By::Kustomize);
    let ready = |walk: &Walk| {
        walk.until("two gateways and three engines are ready", |walk| {
            walk.pods(SYSTEM, "app.kubernetes.io/name=pd-router-gateway").len() == 2
                && walk.pods("default", "alibabacloud.com/inference_backend=sglang").len() == 3
        });
    };
    ready(&walk);
    let rollout =
        |action: &str| walk.sh(&format!("kubectl rollout {action} {GATEWAY} -n {SYSTEM}"));

    // As many as are served at a moment at most: those that a process takes with it.
    let in_flight = 10;
    let lost = failed(&walk, 50, "a rolling update of the gateways", || {
        rollout("restart");
        rollout("status --timeout=100s");
    });
    assert_eq!(lost, Vec::<Value>::new());
    let lost = failed(&walk, 50, "a rollback of the gateways", || {
        rollout("undo");
        rollout("status --timeout=100s");
    });
    assert_eq!(lost, Vec::<Value>::new());
    ready(&walk);

    let lost = failed(&walk, 20, "kill -9 of a gateway", || {
        let gateways = walk.site.processes("usr/local/bin/pd-router");
        let of_gateway = |id: &&nix::unistd::Pid| {
            let words = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
            words.contains("\0gateway\0")
        };
        let gateway = gateways.iter().find(of_gateway).expect("a gateway");
        kill(*gateway, Signal::SIGKILL).expect("killing it");
    });
    assert!(lost.len() <= in_flight, "{lost:?}");
    ready(&walk);

    let lost = failed(&walk, 20, "an engine's pod deleted without grace", || {
        let prefills =
            walk.pods("default", "alibabacloud.com/inference-workload=sglang-pd-prefill");
        walk.sh(&format!("kubectl delete pod {} --grace-period=0 --force", prefills[0].0));
    });
    assert!(lost.len() <= in_flight, "{lost:?}");
    ready(&walk);

    let seconds = (FAULT_AT + AWAY).as_secs() as u32 + 20;
    let lost = failed(&walk, seconds, "the API server away", || {
        let servers = walk.site.processes("kube-apiserver");
        assert_eq!(servers.len(), 1);
        kill(servers[0], Signal::SIGSTOP).expect("stopping it");
        std::thread::sleep(AWAY);
        kill(servers[0], Signal::SIGCONT).expect("continuing it");
    });
    // After its return Kubernetes takes all pods out of their Services until the nodes have reported:
    // kube-proxy may refuse connections to the gateways' Service. A gateway fails no request.
    let refused = lost.iter().filter(|one| one["error"].as_str().is_some_and(is_refused)).count();
    assert!(refused == lost.len() && refused <= in_flight, "{lost:?}");
    ready(&walk);

    let lost = failed(&walk, 40, "a drained node", || {
        // One replica of the gateway stays; the engines of the node move.
        walk.sh("kubectl drain node-2 --ignore-daemonsets --delete-emptydir-data --force --timeout=100s");
    });
    assert!(lost.len() <= in_flight, "{lost:?}");
    walk.sh("kubectl uncordon node-2");
    ready(&walk);
}
