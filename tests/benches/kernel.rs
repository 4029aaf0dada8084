//! What the eBPF programs cost: nanoseconds a packet, CPU a gigabyte, and the agent itself.
//!
//! Needs root, `PD_ROUTER_BIN` and `PD_ROUTER_EBPF_OBJECT`: run `cargo xtask bench kernel`,
//! or a part of it: `cargo xtask bench kernel -- packets|agent|load|control|gigabytes`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use netns::{Namespace, Node, Topology};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use pd_router::agent::bpf::maps::Maps;
use pd_router::agent::bpf::programs::Programs;
use pd_router::agent::flags::TcMode;
use router_common::flow::{POD_BY_INTERFACE, POD_LOCAL, Pod, PodAddress, mapped};
use router_tests::agent::Agent;
use router_tests::node_manifests::{ENGINE, PodEntry, decode, prefill};
use router_tests::process::{cpu_time, resident_bytes};
use router_tests::traffic::{joined, listen, receive, send};

fn main() {
    // `cargo test --benches` runs this too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let parts: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if wanted("packets") {
        Namespace::node().run(per_packet);
    }
    for connections in [100, 1_000, 10_000].into_iter().filter(|_| wanted("agent")) {
        agent_itself(connections.min(max_connections()));
    }
    if wanted("load") {
        under_load();
    }
    if wanted("control") {
        small_messages();
    }
    if wanted("gigabytes") {
        per_gigabyte();
    }
}

/// Number of connections of which this process may have both ends open. Root may raise the limit.
fn max_connections() -> usize {
    const WANTED: u64 = 21_000;
    _ = setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED);
    let (open, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    usize::try_from(open).map_or(usize::MAX, |open| open.saturating_sub(500) / 2)
}

const ACK: u8 = 16;
const SYN: u8 = 2;

/// A TCP segment from client number `flow` to the pod.
fn segment(flow: u32, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend((40 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 6, 0, 0]);
    frame.extend((0xc000_0201 + (flow >> 12)).to_be_bytes());
    frame.extend([10, 9, 8, 7]);
    frame.extend((20_000 + (flow & 0xfff) as u16).to_be_bytes());
    frame.extend(8_000u16.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

/// The answering segment, from the pod to the client.
fn answered(mut frame: Vec<u8>) -> Vec<u8> {
    for (one, other, length) in [(26, 30, 4), (34, 36, 2)] {
        for byte in 0..length {
            frame.swap(one + byte, other + byte);
        }
    }
    frame
}

/// Writes two pods: requests of the first are counted on its interface, and those of the second, as of most
/// pods, at its sockets.
fn write_pods(maps: &Maps) {
    let pod = Pod { flags: POD_LOCAL, ifindex: 1, http_ports: [8000, 0, 0, 0], ..Pod::default() };
    let by_interface = Pod { id: 1, flags: POD_LOCAL | POD_BY_INTERFACE, ..pod };
    for (last, pod) in [(7, by_interface), (9, Pod { id: 2, ..pod })] {
        let address = mapped([10, 9, 8, last]);
        maps.pods.set(&PodAddress { address, port: 0, reserved: 0 }, &pod).expect("a pod");
    }
}

fn per_packet() {
    let object = std::env::var("PD_ROUTER_EBPF_OBJECT").expect("the object");
    let object = std::fs::read(object).expect("the object");
    let pins = Path::new("/sys/fs/bpf/bench");
    let (programs, _) = Programs::load(&object, pins, TcMode::Auto).expect("loading");
    let maps = Maps::open(pins).expect("the maps");
    write_pods(&maps);
    println!("ns a packet (BPF_PROG_TEST_RUN, beyond a packet that is not IP)");
    println!("{:<44} {:>7} {:>11}", "", "1 flow", "1,000 flows");
    let arp = [&[2u8; 12][..], &[8, 6], &[0; 46]].concat();
    let body = vec![b'x'; 1_000];
    let other = |flow: u32| {
        let mut frame = segment(flow, ACK, 1, &body);
        frame[37] += 1;
        frame
    };
    let unknown = |flow: u32| {
        let mut frame = segment(flow, ACK, 1, &body);
        frame[33] += 1;
        frame
    };
    let to_socket = |flow: u32| {
        let mut frame = segment(flow, ACK, 50, &body);
        frame[33] += 2;
        frame
    };
    type Make<'m> = &'m dyn Fn(u32) -> Vec<u8>;
    let cases: [(&str, &str, Make<'_>); 10] = [
        ("pd_pod_egress", "to an engine, sockets count", &to_socket),
        ("pd_pod_ingress", "from it, sockets count", &|flow| answered(to_socket(flow))),
        ("pd_pod_egress", "packet of no pod", &unknown),
        ("pd_pod_egress", "to a pod, no engine's port", &other),
        ("pd_pod_egress", "to an engine, no payload", &|flow| segment(flow, ACK, 1, b"")),
        ("pd_pod_egress", "to an engine, payload", &|flow| segment(flow, ACK, 50, &body)),
        ("pd_pod_ingress", "from an engine, no payload", &|flow| {
            answered(segment(flow, ACK, 1, b""))
        }),
        ("pd_pod_ingress", "from an engine, payload", &|flow| {
            answered(segment(flow, ACK, 1, &body))
        }),
        ("pd_link_ingress", "arriving, tc counts", &other),
        ("pd_xdp", "arriving, XDP counts", &other),
    ];
    ask(&programs, 0..1_000);
    for (program, what, make) in cases {
        let run = |packet: &[u8], repeat| nanoseconds(&programs, program, packet, repeat);
        let empty = run(&arp, 2_000_000);
        let one = run(&make(0), 2_000_000) - empty;
        let frames: Vec<_> = (0..1_000).map(make).collect();
        let all: f64 = frames.iter().map(|frame| run(frame, 2_000)).sum();
        println!("{program:<16}{what:<28} {one:>7.0} {:>11.0}", all / 1_000.0 - empty);
    }
    new_payload(&programs, &arp);
}

/// The mean time of a run in nanoseconds.
fn nanoseconds(programs: &Programs, program: &str, packet: &[u8], repeat: u32) -> f64 {
    programs.test_run(program, packet, repeat).expect("a run").1.as_nanos() as f64
}

/// Sends a request for each of these clients, without an answer.
fn ask(programs: &Programs, flows: Range<u32>) {
    for flow in flows {
        let syn = segment(flow, SYN, 0, b"");
        let request = segment(flow, ACK, 1, b"POST / HTTP/1.1\r\n\r\n");
        for packet in [syn, request] {
            nanoseconds(programs, "pd_pod_egress", &packet, 1);
        }
    }
}

/// A distinct segment per run: the runs above repeat one segment, so all but the first take the
/// retransmit path. The caches are colder here, and the cost of the clock is part of both figures.
fn new_payload(programs: &Programs, arp: &[u8]) {
    const TURNS: u32 = 20;
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    const TOKEN: &[u8] =
        b"3f\r\ndata: {\"choices\": [{\"delta\": {\"content\": \"token\"}}], \"id\": 7}\n\n\r\n";
    const FLOWS: Range<u32> = 1_000..2_000;
    ask(programs, FLOWS);
    let body = vec![b'x'; 1_000];
    let asks = |flow, turn: u32| segment(flow, ACK, 2_000 + turn * body.len() as u32, &body);
    let answers = |flow, turn: u32| match turn {
        0 => answered(segment(flow, ACK, 10_000, HEAD)),
        _ => answered(segment(flow, ACK, 10_000 + turn * TOKEN.len() as u32, TOKEN)),
    };
    let run = |program: &str, make: &dyn Fn(u32, u32) -> Vec<u8>| {
        let once = |turn: u32| -> f64 {
            let took = |flow| nanoseconds(programs, program, &make(flow, turn), 1);
            FLOWS.map(took).sum::<f64>() / FLOWS.len() as f64
        };
        once(0);
        (1..=TURNS).map(once).sum::<f64>() / f64::from(TURNS)
    };
    for (program, what, make) in [
        ("pd_pod_egress", "to an engine, new payload", &asks as &dyn Fn(u32, u32) -> Vec<u8>),
        ("pd_pod_ingress", "from an engine, a token", &answers),
    ] {
        let empty = run(program, &|_, _| arp.to_vec());
        println!("{program:<16}{what:<28} {:>7} {:>11.0}", "", run(program, make) - empty);
    }
}

fn agent_itself(connections: usize) {
    const PODS: u8 = 16;
    const NAMES: [&str; 16] = [
        "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "pa", "pb", "pc", "pd", "pe",
        "pf",
    ];
    let node = Node::new(Topology::Routed);
    let pods: Vec<_> = (0..PODS).map(|pod| node.pod(pod + 2)).collect();
    let named: Vec<_> =
        NAMES.iter().zip(&pods).map(|(name, pod)| prefill(name, pod.address)).collect();
    let agent = Agent::start(&node, &named);
    agent.subscribe();
    let listeners: Vec<_> =
        pods.iter().map(|pod| listen(&pod.netns, pod.address, ENGINE)).collect();
    let open: Vec<_> = (0..connections)
        .map(|number| {
            let (mut client, server) = joined(&node.outside, &listeners[number % listeners.len()]);
            // Each has a request in flight, so that the sweep has something to look at.
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("asking");
            (client, server)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let (before, start) = (cpu_time(agent.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let (after, memory) = (cpu_time(agent.pid()), resident_bytes(agent.pid()) as f64 / 1_048_576.0);
    let share = (after - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    println!(
        "agent, {PODS} pods, {connections} connections, 10 ms ticks: {share:.2} % of a CPU, {memory:.1} MiB"
    );
    drop(open);
}

/// What the programs cost on real packets, as the kernel itself accounts it.
fn under_load() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let pods = transfer(&node, &one);
    let native = ["--xdp", "native"];
    for (what, flags, port) in [
        ("to an engine", &[][..], ENGINE),
        ("to an engine, native XDP on the uplink", &native[..], ENGINE),
        ("KV to a decode", &[][..], KV),
    ] {
        let agent = Agent::start_with(&node, &pods, flags);
        node.netns.sh("echo 1 > /proc/sys/kernel/bpf_stats_enabled");
        let listener = listen(&one.netns, one.address, port);
        let (client, server) = joined(&node.outside, &listener);
        let start = Instant::now();
        const BYTES: u64 = 1 << 30;
        let sending = send(&client, BYTES);
        receive(&server, BYTES);
        sending.join().expect("the sender");
        let speed = BYTES as f64 / start.elapsed().as_secs_f64() / 1e9;
        drop((client, server));
        println!("under load, {what}: {speed:.2} GB/s");
        print_run_times(&node);
        agent.cleanup();
    }
}

/// What the programs cost on small messages to and fro, by the class of their connection. The sockets of the
/// other end are no pod's of the node: half of the runs are theirs.
fn small_messages() {
    const MESSAGES: usize = 100_000;
    // A status of a transfer.
    let message = *b"\x01\x139223372036854775807\x01\x014\x00\x010";
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    let transfers = transfer(&node, &one);
    let other = [transfers[1].clone()];
    for (what, pods, port) in [
        ("control messages", &transfers[..], 40_000),
        ("KV to a decode", &transfers[..], KV),
        ("of no class", &other[..], 40_000),
    ] {
        let agent = Agent::start_with(&node, pods, &[]);
        let listener = listen(&one.netns, one.address, port);
        let (mut client, mut server) = joined(&node.outside, &listener);
        let answering = std::thread::spawn(move || {
            let mut read = [0; 27];
            while server.read_exact(&mut read).is_ok() {
                server.write_all(&read).expect("answering");
            }
        });
        node.netns.sh("echo 1 > /proc/sys/kernel/bpf_stats_enabled");
        let mut read = [0; 27];
        for _ in 0..MESSAGES {
            client.write_all(&message).expect("sending");
            client.read_exact(&mut read).expect("an answer");
        }
        println!("{MESSAGES} messages to and fro, {what}");
        print_run_times(&node);
        let control = &agent.loads()["control"];
        println!(
            "  segments read {}, lost {}",
            control["segments"],
            agent.loads()["lost"]["control"]
        );
        drop(client);
        answering.join().expect("the other end");
        agent.cleanup();
    }
}

/// Prints the mean time of each program since the kernel has counted it, and ends the counting.
fn print_run_times(node: &Node) {
    let programs = node.netns.sh("bpftool -j prog show");
    node.netns.sh("echo 0 > /proc/sys/kernel/bpf_stats_enabled");
    let programs: serde_json::Value = serde_json::from_str(&programs).expect("JSON");
    for program in programs.as_array().expect("programs") {
        let (name, runs) = (&program["name"], program["run_cnt"].as_f64().unwrap_or(0.0));
        if name.as_str().is_some_and(|name| name.starts_with("pd_")) && runs > 100.0 {
            let ns = program["run_time_ns"].as_f64().unwrap_or(0.0) / runs;
            let name = name.as_str().unwrap_or("");
            println!("  {name:<16} {runs:>8.0} runs, {ns:>5.0} ns each");
        }
    }
}

/// On a port that carries KV cache.
const KV: u16 = 15_432;

/// A decode here, and the machine outside for a prefill.
fn transfer(node: &Node, one: &netns::PodNetwork) -> [PodEntry; 2] {
    let elsewhere = PodEntry { node: "node-2", ..prefill("p0", node.addresses().1) };
    [elsewhere, decode("d0", one.address)]
}

/// CPU of this process, which is both ends of the wire and the softirqs between them.
fn own_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

const GIGABYTE: usize = 1_000_000_000;

/// Moves a gigabyte as fast as it goes, and looks at none of it: every byte that is looked at is
/// CPU that hides what the programs cost.
fn pour(listener: &TcpListener, node: &Node) -> Duration {
    let (mut client, mut server) = joined(&node.outside, listener);
    let before = own_cpu();
    let sender = std::thread::spawn(move || {
        let block = vec![0u8; 256 << 10];
        let mut left = GIGABYTE;
        while left > 0 {
            let length = left.min(block.len());
            client.write_all(&block[..length]).expect("sending");
            left -= length;
        }
    });
    let mut buffer = vec![0u8; 256 << 10];
    let mut left = GIGABYTE;
    while left > 0 {
        let read = server.read(&mut buffer).expect("receiving");
        assert!(read > 0, "the connection ended {left} bytes early");
        left -= read;
    }
    sender.join().expect("the sender");
    own_cpu() - before
}

/// CPU seconds a gigabyte with and without the agent, by turns, and how sure the ratio is.
fn per_gigabyte() {
    const ROUNDS: usize = 24;
    /// Student's t for 23 degrees of freedom, 95 %.
    const T: f64 = 2.069;
    for (what, port) in [("to an engine", ENGINE), ("KV to a decode", KV)] {
        let node = Node::new(Topology::Routed);
        let one = node.pod(2);
        let pods = transfer(&node, &one);
        let listener = listen(&one.netns, one.address, port);
        pour(&listener, &node);
        let (mut ratios, mut with, mut without) = (Vec::new(), 0.0, 0.0);
        let mut own = Duration::ZERO;
        for round in 0..ROUNDS {
            // Before either an agent starts: what comes after a pause may find another machine.
            let plain = || {
                Agent::start(&node, &pods).cleanup();
                pour(&listener, &node).as_secs_f64()
            };
            let mut counted = || {
                let agent = Agent::start(&node, &pods);
                let before = cpu_time(agent.pid());
                let seconds = pour(&listener, &node).as_secs_f64();
                own += cpu_time(agent.pid()) - before;
                agent.cleanup();
                seconds
            };
            // The order may matter: they take turns in going first.
            let (a, b) = if round % 2 == 0 {
                (counted(), plain())
            } else {
                let plain = plain();
                (counted(), plain)
            };
            with += a;
            without += b;
            ratios.push(a / b);
        }
        let rounds = ROUNDS as f64;
        let mean = ratios.iter().sum::<f64>() / rounds;
        let variance =
            ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / (rounds - 1.0);
        let half = T * (variance / rounds).sqrt();
        println!(
            "CPU a GB over a pod's veth, {what}, {ROUNDS} rounds by turns: {:.3} s with, {:.3} s \
             without, ratio {mean:.3}, 95 % between {:.3} and {:.3}; the agent itself {:.3} s",
            with / rounds,
            without / rounds,
            mean - half,
            mean + half,
            own.as_secs_f64() / rounds,
        );
    }
}
