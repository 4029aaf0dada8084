//! A kernel's answers about RDMA, byte for byte, for tests without RDMA.
//!
//! `cargo xtask test kernels --filter recorded | sed -n 's/^5.10[^ ]* *recorded //p'` is what
//! router-userspace/src/agent/rdma/tests/recorded/linux-5.10.txt has below its first lines.

use std::time::{Duration, Instant};

use pd_router::agent::rdma::netlink::{KernelNetlink, NetlinkSource, NldevCommand};
use pd_router::agent::rdma::{Activity, HostPaths, Rdma};
use router_tests::patience;
use serde_json::Value;

use super::report;
use super::rig::{Rig, SERVER};

const DEVICES: [&str; 2] = ["rxe0", "rxe1"];
/// Of a device and its port, beside the counters.
const FILES: [&str; 5] =
    ["node_guid", "ports/1/state", "ports/1/rate", "ports/1/gids/0", "ports/1/gids/1"];

fn json(rig: &Rig, command: &str) -> Vec<Value> {
    serde_json::from_str(&rig.node.netns.sh(command)).expect("a list")
}

/// A question's answer in hexadecimal digits; nothing where it is refused.
fn answer(rig: &Rig, command: NldevCommand, device: Option<u32>, port: Option<u32>) -> String {
    rig.node.netns.run(move || {
        let mut kernel = KernelNetlink::default();
        let answer = kernel
            .ask(command, device, port)
            .unwrap_or_else(|error| panic!("{command:?} of {device:?}, port {port:?}: {error}"));
        answer.iter().map(|byte| format!("{byte:02x}")).collect()
    })
}

fn netlink(rig: &Rig, command: NldevCommand, device: Option<u32>, port: Option<u32>) {
    let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
    let answer = answer(rig, command, device, port);
    report(&format!("recorded netlink {command:?} {} {} {answer}", number(device), number(port)));
}

fn sysfs(device: &str, link: &str) {
    let report_file = |path: &str| {
        if let Ok(text) = std::fs::read_to_string(format!("/sys/{path}")) {
            report(&format!("recorded sysfs {path} {}", text.trim()));
        }
    };
    for file in FILES {
        report_file(&format!("class/infiniband/{device}/{file}"));
    }
    for file in ["address", "ifindex", "speed"] {
        report_file(&format!("class/net/{link}/{file}"));
    }
    let folder = format!("class/infiniband/{device}/ports/1/hw_counters");
    let files = std::fs::read_dir(format!("/sys/{folder}")).expect("counters");
    let mut counters: Vec<String> = files
        .map(|file| {
            let file = file.expect("a file");
            let value = std::fs::read_to_string(file.path()).expect("a value");
            format!("{}={}", file.file_name().display(), value.trim())
        })
        .collect();
    counters.sort();
    report(&format!("recorded counters {folder} {}", counters.join(" ")));
}

#[test]
fn rdma_answers_of_the_kernel_are_recorded() {
    let rig = Rig::new();
    // By the connection manager, which then knows both ends; it ends by itself.
    let run = |device: &str, peer: &str| {
        format!("ib_write_bw -d {device} -x 1 -F -R -s 65536 -t 8 -u 20 -D 30 -f 1 {peer}")
    };
    let server = rig.serve(1, &run("rxe1", ""), 18_515);
    let client = rig.start(0, &run("rxe0", SERVER));
    let ready = |pair: &&Value| pair["state"] == "RTS" && pair["pid"].as_u64().is_some();
    let start = Instant::now();
    loop {
        let pairs = json(&rig, "rdma -j resource show qp");
        if pairs.iter().filter(ready).count() == 2 {
            break;
        }
        let in_time = start.elapsed() < patience(Duration::from_secs(60));
        assert!(in_time, "two queue pairs at work: {pairs:?}");
    }
    let devices = json(&rig, "rdma -j dev");
    let index = |name: &str| {
        let found = devices.iter().find(|device| device["ifname"] == *name);
        found.and_then(|device| device["ifindex"].as_u64()).expect("a device") as u32
    };
    let whole = [
        NldevCommand::Ports,
        NldevCommand::Driver,
        NldevCommand::QueuePairs,
        NldevCommand::ConnectionIds,
    ];
    netlink(&rig, NldevCommand::Devices, None, None);
    for name in DEVICES {
        let index = Some(index(name));
        whole.into_iter().for_each(|command| netlink(&rig, command, index, None));
        netlink(&rig, NldevCommand::Counters, index, Some(1));
    }
    for (name, link) in DEVICES.into_iter().zip(["wa", "wb"]) {
        sysfs(name, link);
    }
    let mut processes: Vec<u64> = json(&rig, "rdma -j resource show qp")
        .iter()
        .filter_map(|pair| pair["pid"].as_u64())
        .collect();
    processes.sort_unstable();
    processes.dedup();
    for process in processes {
        let cgroup = std::fs::read_to_string(format!("/proc/{process}/cgroup")).expect("a cgroup");
        report(&format!("recorded proc {process} {}", cgroup.trim()));
    }
    // The recorder asks as the agent does, and the agent understands.
    let understood = rig.node.netns.run(|| {
        let mut rdma =
            Rdma::new(Box::<KernelNetlink>::default(), &HostPaths::default(), Vec::new());
        rdma.sample(Duration::from_secs(1), &Activity::default());
        rdma.report(Duration::from_secs(1))
    });
    let found: Vec<(&str, &str)> =
        understood.devices.iter().map(|device| (device.device.as_str(), device.driver)).collect();
    assert_eq!(found, DEVICES.map(|name| (name, "rxe")));
    client.done();
    server.ended();
}
