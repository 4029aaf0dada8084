//! A pool of a thousand pods: how soon one pod's event is in the fleet, and what it costs.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use router_tests::fleet::Engine;
use router_tests::manifests::Pod;
use router_tests::{Gateway, eventually};
use serde_json::Value;
use sglang_sim::{Config, Role};

use crate::Scene;

const PREFILLS: usize = 200;
const DECODES: usize = 800;
const PODS: u64 = (PREFILLS + DECODES) as u64;
/// Each is a pod that is deleted, is gone, and comes back and turns ready.
const ROUNDS: usize = 100;
/// Requests to the API server at a time while the pods are made.
const AT_ONCE: usize = 32;
/// Deadline for what concerns a thousand pods, in a debug build on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// Time over which the idle gateway's CPU use is measured.
const IDLE: Duration = Duration::from_secs(2);
/// Bound of an event's delay. Operators are promised a tenth of it with release builds on an idle
/// machine: docs/reference/cluster.md has the figures.
const MOST: Duration = Duration::from_secs(1);
/// Of memory, at its highest.
const MOST_BYTES: u64 = 512 << 20;

/// What a fleet holds, as the gateway logs it: workers, and those of them whose pods are ready.
type Held = (u64, u64);

/// The gateway's log, read up to a place.
struct Reader<'g> {
    gateway: &'g Gateway,
    read: usize,
}

impl Reader<'_> {
    /// Time of the first fleet in the unread part of the log that holds this.
    async fn fleet(&mut self, wanted: Held) -> Timestamp {
        eventually(&format!("a fleet of {wanted:?}"), LONG, async || {
            let log = self.gateway.log();
            // What follows the last end of a line is not whole yet.
            while let Some(length) = log[self.read..].find('\n') {
                let line = &log[self.read..self.read + length];
                self.read += length + 1;
                if let Some((at, held)) = fleet_of(line)
                    && held == wanted
                {
                    return Some(at);
                }
            }
            None
        })
        .await
    }
}

fn fleet_of(line: &str) -> Option<(Timestamp, Held)> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["message"] != "fleet published" {
        return None;
    }
    let at = line["timestamp"].as_str()?.parse().ok()?;
    Some((at, (line["workers"].as_u64()?, line["ready"].as_u64()?)))
}

/// Times of one kind of event, from before the request to the API server until the fleet has it.
#[derive(Default)]
struct Took(Vec<Duration>);

impl Took {
    fn add(&mut self, asked: Timestamp, served: Timestamp) {
        self.0.push(served.duration_since(asked).try_into().unwrap_or_default());
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted[(sorted.len() * percent).div_ceil(100) - 1]
    }

    fn print(&self, what: &str) {
        let [median, late, last] = [50, 99, 100].map(|percent| self.percentile(percent));
        let count = self.0.len();
        println!("{what}: {count} events, median {median:?}, p99 {late:?}, slowest {last:?}");
    }
}

/// Starts the engines and makes their pods.
async fn populate(scene: &Scene) -> Vec<Engine> {
    // Each has a socket or two, and so has each of the gateway's connections.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard).expect("raising it");
    let mut engines = Vec::new();
    for at in 0..PREFILLS + DECODES {
        let role = if at < PREFILLS { Role::Prefill } else { Role::Decode };
        engines.push(Engine::start(&format!("engine-{at}"), role, Config::instant).await);
    }
    let pods: Vec<Pod> = engines.iter().map(|engine| engine.pod.clone()).collect();
    let puts = stream::iter(pods).map(async |pod| scene.cluster.put_pod(&scene.client, &pod).await);
    puts.buffer_unordered(AT_ONCE).collect::<()>().await;
    engines
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pods_event_among_a_thousand_is_in_the_fleet_within_a_tenth_of_a_second() {
    let scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let start = Instant::now();
    let engines = populate(&scene).await;
    let mut log = Reader { gateway: &gateway, read: 0 };
    log.fleet((PODS, PODS)).await;
    eventually("the gateway knows every engine", LONG, async || {
        // `/fleet` of a thousand pods is expensive to render: the CPU is left to the engines.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let fleet = gateway.fleet().await.to_string();
        (fleet.matches("page_size").count() as u64 >= PODS).then_some(())
    })
    .await;
    println!("{PODS} pods served after {:?}", start.elapsed());

    let (before, start) = (gateway.cpu_time(), Instant::now());
    tokio::time::sleep(IDLE).await;
    let pace = (gateway.cpu_time() - before).div_duration_f64(start.elapsed());

    let [mut ready, mut deleted, mut gone] = [Took::default(), Took::default(), Took::default()];
    let (before, start) = (gateway.cpu_time(), Instant::now());
    let (cluster, client) = (&scene.cluster, &scene.client);
    for engine in engines.iter().step_by(engines.len() / ROUNDS) {
        let pod = &engine.pod;
        let asked = Timestamp::now();
        cluster.delete_pod(client, &pod.name).await;
        deleted.add(asked, log.fleet((PODS, PODS - 1)).await);
        let asked = Timestamp::now();
        cluster.finish_pod(client, &pod.name).await;
        gone.add(asked, log.fleet((PODS - 1, PODS - 1)).await);
        let unready = Pod { ready: false, ..pod.clone() };
        cluster.put_pod(client, &unready).await;
        log.fleet((PODS, PODS - 1)).await;
        let asked = Timestamp::now();
        cluster.patch_pod(client, pod, true).await;
        ready.add(asked, log.fleet((PODS, PODS)).await);
    }
    let (spent, elapsed) = (gateway.cpu_time() - before, start.elapsed());
    ready.print("a pod turns ready");
    deleted.print("a pod is deleted");
    gone.print("a pod is gone");
    // Five changes a round: a pod is made before it has an address.
    let events = 5 * ROUNDS as u32;
    let of_events = spent.saturating_sub(elapsed.mul_f64(pace)) / events;
    println!("processor: {of_events:?} an event; {:.1} % of a core besides, probes", 100.0 * pace);
    println!("memory at its highest: {} MiB", gateway.peak_bytes() >> 20);

    for took in [&ready, &deleted, &gone] {
        assert!(took.percentile(99) < MOST, "{:?}", took.0);
    }
    assert!(gateway.peak_bytes() < MOST_BYTES, "{} bytes", gateway.peak_bytes());
}
