//! From a byte on the wire at a pod to its load in a gateway's view, and what 100 agents cost a
//! gateway: one real agent, and 99 publishers that replay it, of 16 pods each.
//!
//! Needs root, BPF, `PD_ROUTER_BIN` and `SGLANG_SIM_BIN`: run `cargo xtask bench feedback`.

mod replay;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use router_tests::manifests::{ENGINE_PORT, ROLE_LABEL};
use router_tests::process::cpu_time;
use router_tests::site::bypass::{Question, around};
use router_tests::site::{AGENT_PORT, LIMIT, Site, SiteGateway, enter, wait};

use replay::{Publisher, Sent, publish, record};

const PUBLISHERS: u8 = 99;
const PAIRS: usize = 8;
const EVENTS: usize = 1_000;
/// The agent's default.
const TICK: Duration = Duration::from_millis(10);
const RECORDED: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_secs(20);
/// Between two looks at a gateway's view; what is measured is late by up to that and an answer.
const LOOKS: Duration = Duration::from_micros(200);
const ENGINES: &str = "--prefill-tokens-per-second 100000 --inter-token-ms 5";
/// About 200 ms at a pair, most of them a stream.
const QUESTION: Question = Question { prompt_bytes: 4_000, tokens: 32 };

fn main() {
    // `cargo test --benches` runs this too, without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut site = Site::new();
    for role in ["prefill", "decode"] {
        (0..PAIRS).for_each(|_| site.engine(role, false, ENGINES));
    }
    // An engine that gets no requests.
    site.engine("decode", false, ENGINES);
    for engine in &site.engines {
        wait_for_listener(&site, SocketAddr::new(engine.pod.address, ENGINE_PORT));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let outside = site.node.outside.path();
    let load: Vec<_> = (0..PAIRS)
        .map(|pair| {
            let pair = [pair, PAIRS + pair].map(|engine| site.engines[engine].pod.address);
            around(pair, QUESTION, outside.clone(), Arc::clone(&stop))
        })
        .collect();
    // Pods of another node are not looked for on this one.
    site.agent("--node-name node-0");
    let (publishers, sent) = start_replays(&site);
    let real = format!("--agent {}", site.agent_address());
    let all: String =
        publishers.iter().map(|publisher| format!(" --agent {}", publisher.address)).collect();
    let (few, many) = (site.gateway(&real), site.gateway(&format!("{real}{all}")));
    few.until_loads_fresh(2 * PAIRS + 1);
    let workers = usize::from(PUBLISHERS) * 2 * PAIRS + 2 * PAIRS + 1;
    many.until_loads_fresh(workers);

    gateway_cpu(&site, workers, &sent);
    many.until_loads_fresh(workers);

    let probe = site.engines.last().expect("the engine without requests");
    let engine = SocketAddr::new(probe.pod.address, ENGINE_PORT);
    for (name, gateway) in [("one agent", &few), ("100 agents", &many)] {
        let mut took = events(gateway, &probe.name, engine);
        took.sort();
        let at = |share: f64| took[(share * (took.len() - 1) as f64) as usize].as_secs_f64() * 1e3;
        println!(
            "event to view, {EVENTS} requests, {name}: p50 {:.1} ms, p90 {:.1}, p99 {:.1}, most {:.1}",
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
    }
    stop.store(true, Ordering::Relaxed);
    load.into_iter().for_each(|load| load.join().expect("requests past the gateways"));
}

/// CPU of the first gateway, which subscribes to one agent, and of the second, which subscribes to
/// all.
fn gateway_cpu(site: &Site, workers: usize, sent: &Sent) {
    let cpu = |gateway| cpu_time(site.gateway_pid(gateway));
    let (before, frames, start) = ([cpu(0), cpu(1)], sent.load(Ordering::Relaxed), Instant::now());
    wait("both gateways are watched", || (start.elapsed() >= WATCHED).then_some(()));
    let took = start.elapsed().as_secs_f64();
    let share = |at: usize| (cpu(at) - before[at]).as_secs_f64() / took * 100.0;
    let (one, hundred) = (share(0), share(1));
    let frames = (sent.load(Ordering::Relaxed) - frames) as f64 / took;
    println!(
        "CPU of a gateway of {workers} workers, {took:.0} s: {one:.1} % of a core with one agent, \
         {hundred:.1} % with 100 ({frames:.0} frames/s more): {:.1} % for 99, {:.1} us a frame",
        hundred - one,
        (hundred - one) * 1e4 / frames,
    );
}

/// Waits until a program accepts connections on `address`.
fn wait_for_listener(site: &Site, address: SocketAddr) {
    wait("a program listens", || {
        let path = site.node.outside.path();
        let tried = std::thread::spawn(move || {
            enter(&path);
            TcpStream::connect(address).is_ok()
        });
        tried.join().ok()?.then_some(())
    });
}

/// Publishers that replay the agent's current stream, with their pods added to the manifests.
fn start_replays(site: &Site) -> (Vec<Publisher>, Sent) {
    let busy = &site.engines[..2 * PAIRS];
    let of: Vec<String> = busy.iter().map(|engine| format!("{}-1", engine.name)).collect();
    let agent = site.agent_address();
    wait_for_listener(site, agent);
    // Connections that were open when the agent started have ended by then.
    record(&site.node.outside, agent, Duration::from_secs(2));
    let recording = record(&site.node.outside, agent, RECORDED);
    println!(
        "recorded of an agent of {} busy pods: {:.0} frames and {:.0} records of pods a second",
        busy.len(),
        recording.frames_a_second(),
        recording.pods_a_second()
    );
    // Connections to a pod that does not exist fail at once.
    site.node.outside.sh("ip route add unreachable 198.18.0.0/15");
    let sent = Sent::default();
    let publishers = (1..=PUBLISHERS).map(|number| {
        let names: Vec<String> =
            busy.iter().map(|engine| format!("{}-at-{number}", engine.name)).collect();
        let pods = names.iter().zip(busy).zip(1..).map(|((name, engine), at)| {
            elsewhere(name, engine.role, Ipv4Addr::new(198, 18, number, at))
        });
        let pods: Vec<String> = pods.collect();
        site.manifests.put(&format!("elsewhere-{number}.yaml"), &pods.join("---\n"));
        let address = SocketAddr::new(Ipv4Addr::new(127, 1, 0, number).into(), AGENT_PORT);
        publish(&site.node.outside, address, &recording, (&of, &names), &sent)
    });
    (publishers.collect(), sent)
}

/// A pod of another node that does not exist. Its load is published all the same.
fn elsewhere(name: &str, role: &str, ip: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  uid: {name}
  labels:
    alibabacloud.com/inference_backend: sglang
    {label}: {role}
spec:
  nodeName: elsewhere
status:
  phase: Running
  podIP: {ip}
  conditions:
  - type: Ready
    status: \"False\"
",
        label = ROLE_LABEL,
    )
}

/// From the first byte of a request to the engine until the gateway takes the engine to have one.
fn events(gateway: &SiteGateway, worker: &str, engine: SocketAddr) -> Vec<Duration> {
    let (outside, admin) = (gateway.outside.clone(), gateway.admin);
    let worker = worker.to_owned();
    let measured = std::thread::spawn(move || {
        enter(&outside);
        let mut view = View { stream: TcpStream::connect(admin).expect("the gateway"), worker };
        let mut took = Vec::with_capacity(EVENTS);
        while took.len() < EVENTS {
            let mut client = TcpStream::connect(engine).expect("the engine");
            client.set_nodelay(true).expect("a socket");
            view.until(0.0);
            // What was seen came with a tick: the next event comes at any time between two.
            std::thread::sleep(TICK.mul_f64((took.len() % 101) as f64 / 101.0));
            let start = Instant::now();
            // The body never comes: the request stays for as long as its connection.
            client
                .write_all(b"POST /generate HTTP/1.1\r\nhost: e\r\ncontent-length: 9\r\n\r\n")
                .expect("asking");
            view.until(1.0);
            took.push(start.elapsed());
        }
        took
    });
    measured.join().expect("the events")
}

/// A connection to a gateway's admin port.
struct View {
    stream: TcpStream,
    worker: String,
}

impl View {
    /// Reads the gateway's view until others have this number of requests at the worker.
    fn until(&mut self, requests: f64) {
        let start = Instant::now();
        while self.others() != Some(requests) {
            assert!(start.elapsed() < LIMIT, "the gateway never saw {requests} requests");
            std::thread::sleep(LOOKS);
        }
    }

    fn others(&mut self) -> Option<f64> {
        let request =
            format!("GET /fleet/loads/default/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.worker);
        self.stream.write_all(request.as_bytes()).expect("asking");
        let mut answer = Vec::new();
        let mut piece = [0; 8192];
        loop {
            let read = self.stream.read(&mut piece).expect("an answer");
            assert!(read > 0, "the gateway hung up");
            answer.extend_from_slice(&piece[..read]);
            if let Some(body) = body(&answer) {
                let loads: serde_json::Value = serde_json::from_slice(body).expect("JSON");
                return loads[0]["load"]["others_requests"].as_f64();
            }
        }
    }
}

/// The body of an answer, once it is whole.
fn body(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).expect("a head");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.expect("a length").trim().parse().expect("a length");
    answer.get(end..end + length)
}
