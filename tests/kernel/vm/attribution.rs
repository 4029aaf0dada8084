//! Pods of queue pairs and counters of devices, compared with what the kernel's own tool prints.

use router_tests::agent::Agent;
use serde_json::Value;

use super::rig::{CLIENT, Rig, SERVER, pod};
use super::writer::Writer;
use super::{found, kernel, shown};

fn device<'v>(loads: &'v Value, name: &str) -> &'v Value {
    let devices = loads["rdma"]["devices"].as_array().expect("RDMA devices");
    devices.iter().find(|device| device["device"] == name).unwrap_or(&Value::Null)
}

/// A pod's entry in the RDMA part of `/v1/loads`.
fn held<'v>(loads: &'v Value, name: &str) -> &'v Value {
    let pods = loads["rdma"]["pods"].as_array().expect("pods with RDMA");
    let name = format!("default/{name}");
    pods.iter().find(|pod| pod["pod"] == *name).unwrap_or(&Value::Null)
}

/// The share of a device that a pod's queue pairs have, and how it is known.
fn share<'v>(loads: &'v Value, on: &str, name: &str) -> &'v Value {
    let name = format!("default/{name}");
    let holders = device(loads, on)["holders"].as_array();
    let holder = holders.into_iter().flatten().find(|holder| holder["pod"] == *name);
    holder.map_or(&Value::Null, |holder| &holder["share"])
}

fn active(loads: &Value, name: &str) -> Option<u64> {
    held(loads, name)["active_queue_pairs"].as_u64()
}

fn is(share: &Value, value: f64, provenance: &str) -> bool {
    share["value"].as_f64() == Some(value) && share["provenance"] == provenance
}

fn agent(rig: &Rig) -> Agent<'_> {
    let pods = [
        pod(0, "p0", CLIENT, "prefill"),
        pod(1, "d0", SERVER, "decode"),
        pod(2, "p1", "10.7.0.3", "prefill"),
    ];
    Agent::start_with(&rig.node, &pods, &["--xdp", "native", "--uplink", "wa", "--uplink", "wb"])
}

#[test]
fn queue_pairs_are_attributed_to_pods_and_end_with_their_process() {
    let rig = Rig::new();
    let agent = agent(&rig);
    let first = Writer::start(&rig, 0);
    let loads = agent.until("each device one pod's", |loads| {
        let both = (active(loads, "p0"), active(loads, "d0"));
        both == (Some(1), Some(1))
            && is(share(loads, "rxe0", "p0"), 1.0, "exact")
            && is(share(loads, "rxe1", "d0"), 1.0, "exact")
            && held(loads, "d0")["arrived"]["write_bytes"].as_u64() > Some(0)
    });
    // The device's bytes are reported where it counts them, and are unknown, not zero, elsewhere.
    let (bytes, provenance) =
        (&held(&loads, "p0")["tx_bytes"], &device(&loads, "rxe0")["bytes_provenance"]);
    if kernel() >= (7, 2) {
        let loads = agent.until("bytes of the pod", |loads| {
            held(loads, "p0")["tx_bytes"]["value"].as_f64() > Some(65_536.0)
        });
        assert_eq!(held(&loads, "p0")["tx_bytes"]["provenance"], "exact");
        assert_eq!(device(&loads, "rxe0")["bytes_provenance"], "exact");
    } else {
        assert_eq!((&bytes["value"], &bytes["provenance"]), (&Value::Null, &"unknown".into()));
        assert_eq!(provenance, "unknown");
        let missing = loads["missing"].as_array().expect("a list");
        assert!(
            missing.iter().any(|line| line.as_str().is_some_and(|line| line.contains("rxe0"))),
            "{missing:#?}"
        );
    }
    let how = if kernel() >= (7, 2) { "exact" } else { "unknown, and said so" };
    found("rxe's device bytes", how);
    shown("/v1/loads under ib_write_bw", &loads);

    // A second pod on the same device: halves, and said to be estimates.
    let second = Writer::start(&rig, 2);
    agent.until("two pods on one device", |loads| {
        ["p0", "p1"].iter().all(|name| is(share(loads, "rxe0", name), 0.5, "estimated"))
    });
    found("two pods on one device", "split, estimated");
    second.stop();
    agent.until("one pod again", |loads| {
        active(loads, "p1") == Some(0) && is(share(loads, "rxe0", "p0"), 1.0, "exact")
    });
    first.stop();
    agent.until("no queue pairs", |loads| {
        (active(loads, "p0"), active(loads, "d0")) == (Some(0), Some(0))
    });
    found("queue pairs by pod", "found, and gone with their process");
}

#[test]
fn device_counters_equal_rdma_statistic() {
    let rig = Rig::new();
    let agent = agent(&rig);
    let writer = Writer::start(&rig, 0);
    agent.until("packets on the device", |loads| {
        active(loads, "p0") == Some(1)
            && device(loads, "rxe0")["counters"]["tx_packets"].as_u64() > Some(100)
    });
    writer.stop();
    for name in ["rxe0", "rxe1"] {
        let settled = rig.settled(name);
        let pairs = [("sent_pkts", "tx_packets"), ("rcvd_pkts", "rx_packets")];
        let bytes = [("sent_bytes", "tx_bytes"), ("rcvd_bytes", "rx_bytes")];
        let bytes = bytes.into_iter().filter(|_| kernel() >= (7, 2));
        for (theirs, ours) in pairs.into_iter().chain(bytes) {
            let expected =
                settled[theirs].as_u64().unwrap_or_else(|| panic!("no {theirs}: {settled}"));
            assert!(expected > 0, "{name} moved nothing");
            agent.until(&format!("{ours} of {name} is {expected}"), |loads| {
                device(loads, name)["counters"][ours] == expected
            });
        }
    }
    found("device counters", "equal to `rdma statistic`");
}
