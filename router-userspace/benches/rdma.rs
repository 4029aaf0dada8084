//! Cost of one RDMA sample: 4 devices and 1,000 queue pairs, on hand-built answers.
//!
//! `cargo xtask bench rdma`. The answers have the kernel's layout and include erdma's counters of
//! both driver families. The figures exclude the kernel's time to answer.

#[path = "../src/agent/rdma/tests/golden.rs"]
mod golden;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use pd_router::agent::rdma::netlink::{NetlinkSource, NldevCommand};
use pd_router::agent::rdma::{Activity, HostPaths, Rdma};

use golden::Pair;

const DEVICES: u32 = 4;
const PAIRS_EACH: u32 = 250;
const PODS: u32 = 8;
const PROCESSES: u32 = 32;
const ROUNDS: usize = 2_000;

struct Recorded {
    answers: HashMap<(NldevCommand, Option<u32>, Option<u32>), Vec<u8>>,
    last: Vec<u8>,
}

impl NetlinkSource for Recorded {
    fn ask(
        &mut self,
        command: NldevCommand,
        device: Option<u32>,
        port: Option<u32>,
    ) -> io::Result<&[u8]> {
        let answer = self.answers.get(&(command, device, port));
        let answer = answer.ok_or_else(|| io::Error::from_raw_os_error(22))?;
        // As a socket would, it copies.
        self.last.clear();
        self.last.extend(answer);
        Ok(&self.last)
    }
}

/// The names that erdma's installer driver has, all 58 of them in kind if not in wording.
fn counters(device: u32) -> Vec<(String, u64)> {
    let hardware =
        ["hw_tx_reqs_cnt", "hw_tx_packets_cnt", "hw_tx_bytes_cnt", "hw_disable_drop_cnt"];
    let received = ["hw_rx_packets_cnt", "hw_rx_bytes_cnt", "hw_rx_bps_limit_drop_cnt"];
    let verbs = (0..51).map(|n| (format!("verbs_number_{n}_failed_cnt"), n));
    let named =
        hardware.iter().chain(&received).map(|name| ((*name).to_owned(), u64::from(device)));
    named.chain(verbs).collect()
}

fn recorded() -> Recorded {
    let mut answers = HashMap::new();
    let mut all = Vec::new();
    for device in 0..DEVICES {
        let name = format!("erdma_{device}");
        all.extend(golden::device(device, &name, 0x0216_3eff_fe00_0000 + u64::from(device), "iw"));
        let port = golden::port(device, &name, (device + 2, "eth0"));
        answers.insert((NldevCommand::Ports, Some(device), None), port);
        answers.insert((NldevCommand::Driver, Some(device), None), golden::driver(19));
        let named = counters(device);
        let named: Vec<(&str, u64)> = named.iter().map(|(name, v)| (name.as_str(), *v)).collect();
        let counted = golden::counters(device, &name, &named);
        answers.insert((NldevCommand::Counters, Some(device), Some(1)), counted);
        let pair = |n| Pair { number: n, kind: 2, state: 3, sent: n, pid: 100 + n % PROCESSES };
        let pairs: Vec<Pair> = (1..=PAIRS_EACH).map(pair).collect();
        let held = golden::queue_pairs(device, &name, &pairs);
        answers.insert((NldevCommand::QueuePairs, Some(device), None), held);
        let ends = |n: u32| (n, 100 + n % PROCESSES, address(1, n), address(2 + n % 16, n));
        let ids: Vec<_> = (1..=PAIRS_EACH).map(ends).collect();
        let connected = ids.chunks(20).flat_map(|ids| golden::connections(device, &name, ids));
        answers.insert((NldevCommand::ConnectionIds, Some(device), None), connected.collect());
    }
    answers.insert((NldevCommand::Devices, None, None), all);
    Recorded { answers, last: Vec::new() }
}

fn address(host: u32, port: u32) -> std::net::SocketAddr {
    let host = std::net::Ipv4Addr::new(10, 0, 0, host as u8);
    (host, 10_000 + port as u16).into()
}

/// Processes of pods, and what sysfs has beside the answers.
fn trees(root: &Path) -> HostPaths {
    let write = |path: String, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    for process in 0..PROCESSES {
        let pod = format!("{:08x}_1111_4111_8111_111111111111", process % PODS);
        let slice =
            format!("kubepods-burstable-pod{pod}.slice/cri-containerd-{process:064x}.scope");
        let path = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
        write(format!("proc/{}/cgroup", 100 + process), &format!("0::{path}\n"));
    }
    for device in 0..DEVICES {
        let port = format!("sys/class/infiniband/erdma_{device}/ports/1");
        write(format!("{port}/rate"), "100 Gb/sec (4X EDR)\n");
        write(format!("{port}/hw_counters/lifespan"), "10\n");
    }
    HostPaths { sysfs: root.join("sys"), proc: root.join("proc"), erdma: root.join("none") }
}

fn main() {
    // `cargo test --benches` runs this binary without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let root: PathBuf =
        std::env::temp_dir().join(format!("pd-router-bench-{}", std::process::id()));
    let roots = trees(&root);
    let mut rdma = Rdma::new(Box::new(recorded()), &roots, Vec::new());
    let activity = Activity::default();
    println!("{DEVICES} devices, {} queue pairs, {PROCESSES} processes", DEVICES * PAIRS_EACH);
    println!("{:<44} {:>9} {:>9} {:>9}", "microseconds", "median", "p99", "CPU");
    let mut now = Duration::ZERO;
    for (what, step) in [
        ("a whole round, and its report", Duration::from_secs(1)),
        ("counters alone, and their report", Duration::from_millis(101)),
    ] {
        let looks = step < Duration::from_secs(1);
        rdma.set_scan_interval(if looks { Duration::from_secs(1_000_000) } else { Duration::ZERO });
        rdma.sample(now, &activity);
        let cpu = cpu_time();
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                now += step;
                let start = Instant::now();
                assert_eq!(rdma.sample(now, &activity), !looks, "what this round is to do");
                let report = rdma.report(now);
                let took = start.elapsed();
                assert_eq!(report.devices.len(), DEVICES as usize);
                took
            })
            .collect();
        // What a round takes of a CPU, which a machine that is busy with others does not change.
        let cpu = (cpu_time() - cpu).as_secs_f64() * 1e6 / ROUNDS as f64;
        times.sort_unstable();
        let at = |index: usize| times[index].as_secs_f64() * 1e6;
        let (median, p99) = (at(ROUNDS / 2), at(ROUNDS * 99 / 100));
        println!("{what:<44} {median:>9.0} {p99:>9.0} {cpu:>9.0}");
    }
    _ = std::fs::remove_dir_all(&root);
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of every thread").into()
}
