//! The agent's counters, compared with the engines' and the kernel's own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use router_tests::eventually;
use router_tests::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};
use serde_json::{Value, json};

use crate::agent::{kv_bytes, open_connections, pod};
use crate::requests;
use crate::server::Server;
use crate::testbed::TestBed;

/// Port range of Mooncake's data connections.
const MOONCAKE: std::ops::RangeInclusive<u16> = 15_000..=17_000;
/// Time for periodically read counters to catch up.
const COUNTER_DEADLINE: Duration = Duration::from_secs(20);
/// Allowed difference: Mooncake's framing and auxiliary data beside the KV cache.
const FRAMING: f64 = 0.02;
const STREAMS: u32 = 24;
const TOKENS: u32 = 32;

/// Compares the KV bytes of each pair with the engine's own count.
pub(crate) async fn kv(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&["--policy", "round_robin"]).await;
    let before = kv_bytes_moved(testbed).await;
    for number in 0..24 {
        let words = format!("a cache moves {number} times ").repeat(60 + 10 * number);
        let body = requests::generate(&words, 2);
        gateway.client.post("/generate", &body).await.expect_status(200);
    }
    testbed.wait_until_idle().await;
    for (place, prefill) in testbed.prefills().enumerate() {
        let what = format!("the counters of {} agree", prefill.name);
        let (engine, agent) = eventually(&what, COUNTER_DEADLINE, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = kv_bytes_moved(testbed).await;
            let engine = now[place].0 - before[place].0;
            let agent = now[place].1 - before[place].1;
            // Bytes in flight are counted on one side only.
            (engine > 0.0 && (agent / engine - 1.0).abs() < FRAMING).then_some((engine, agent))
        })
        .await;
        println!(
            "  {} to decode: the engine moved {engine:.0} bytes, the agent counts {agent:.0} \
             ({:+.2} %)",
            prefill.name,
            (agent / engine - 1.0) * 100.0
        );
    }
}

/// Bytes from each prefill to the decode: the engine's count and the agent's.
async fn kv_bytes_moved(testbed: &TestBed) -> Vec<(f64, f64)> {
    let loads = testbed.agent.loads().await;
    let mut kv_bytes_moved = Vec::new();
    for prefill in testbed.prefills() {
        let mib = metric(prefill, "sglang:kv_transfer_total_mb_sum").await;
        let agent = kv_bytes(&loads, prefill.name, testbed.decode.name) as f64;
        kv_bytes_moved.push((mib * f64::from(1 << 20), agent));
    }
    kv_bytes_moved
}

/// Compares the agent's open connections, by class, with what `ss` shows in the pods.
pub(crate) async fn connections(testbed: &mut TestBed) {
    let gateway = testbed.gateway(&["--policy", "round_robin"]).await;
    for number in 0..6 {
        let body = requests::generate(&format!("a connection carries {number}"), 2);
        gateway.client.post("/generate", &body).await.expect_status(200);
    }
    testbed.wait_until_idle().await;
    // Heartbeats open and close connections in the meantime.
    let until = Instant::now() + COUNTER_DEADLINE;
    let same = loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let shown = shown_by_ss(testbed);
        let counted = counted_by_agent(testbed).await;
        if shown == counted {
            break shown;
        }
        assert!(Instant::now() < until, "ss: {shown:#?}\nthe agent: {counted:#?}");
    };
    for ((pod, peer, class), open) in &same {
        println!("  {pod} and {peer}: {open} of class {class}");
    }
    for class in ["bootstrap", "kv", "kv_control"] {
        assert!(same.keys().any(|key| key.2 == class), "no connection of class {class}: {same:?}");
    }
}

type Connections = BTreeMap<(String, String, String), u64>;

async fn counted_by_agent(testbed: &TestBed) -> Connections {
    let loads = testbed.agent.loads().await;
    let between_engines = |name: &str| testbed.engines().any(|server| server.name == name);
    let rows = open_connections(&loads).into_iter();
    rows.filter(|(pod, peer, ..)| pod != peer && between_engines(pod) && between_engines(peer))
        .map(|(pod, peer, class, open)| ((pod, peer, class), open))
        .collect()
}

fn shown_by_ss(testbed: &TestBed) -> Connections {
    let mut shown = Connections::new();
    for server in testbed.engines() {
        let lines = server.pod.netns.sh("ss -Htn state established");
        for line in lines.lines() {
            let mut words = line.split_whitespace().skip(2);
            let (local, remote) = (words.next(), words.next());
            let (Some(local), Some(remote)) = (local.and_then(address), remote.and_then(address))
            else {
                continue;
            };
            let peer = testbed.engines().find(|peer| peer.ip().to_string() == remote.0);
            if let Some(peer) = peer.filter(|peer| peer.name != server.name) {
                let key = (server.name.into(), peer.name.into(), class(local.1, remote.1).into());
                *shown.entry(key).or_default() += 1;
            }
        }
    }
    shown
}

/// Parses `ADDRESS:PORT` as ss prints it, also an IPv4-mapped IPv6 address.
fn address(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_start_matches("::ffff:");
    Some((host.to_owned(), port.parse().ok()?))
}

/// The class by the ports of the servers. The agent was configured with only two of them.
fn class(local: u16, remote: u16) -> &'static str {
    let either = |is: &dyn Fn(u16) -> bool| is(local) || is(remote);
    if either(&|port| port == ENGINE_PORT) {
        "engine"
    } else if either(&|port| port == BOOTSTRAP_PORT) {
        "bootstrap"
    } else if either(&|port| MOONCAKE.contains(&port)) {
        "kv"
    } else {
        "kv_control"
    }
}

/// Compares time to first token and inter-token time with the engine's own histograms.
pub(crate) async fn latencies(testbed: &mut TestBed) {
    // No probe or load request may be among decode's answers in the meantime.
    let flags = ["--probe-interval", "1h", "--engine-load-interval", "1h"];
    let gateway = testbed.gateway(&flags).await;
    testbed.wait_until_idle().await;
    // Scrapes of the engine are answers that the kernel counts too: wait until those before the
    // first reading are counted, and read the kernel before the engine at the end.
    let engine_before = engine_times(&testbed.decode).await;
    let kernel_before =
        eventually("the agent has counted the questions", COUNTER_DEADLINE, async || {
            let first = kernel_times(testbed).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let second = kernel_times(testbed).await;
            (first.ttft == second.ttft).then_some(second)
        })
        .await;
    for number in 0..STREAMS {
        let mut body = requests::chat(&format!("a stream counts {number} words"), TOKENS);
        (body["stream"], body["ignore_eos"]) = (true.into(), json!(true));
        let (events, _) = gateway.client.open("/v1/chat/completions", &body).await.events().await;
        assert!(events.len() > TOKENS as usize / 2, "{events:?}");
    }
    let streams = f64::from(STREAMS);
    let kernel = eventually("the agent has counted every stream", COUNTER_DEADLINE, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = kernel_times(testbed).await.since(kernel_before);
        (now.ttft.1 >= streams).then_some(now)
    })
    .await;
    assert_eq!(kernel.ttft.1, streams, "answers beside the streams");
    let engine = eventually("the engine has counted every stream", COUNTER_DEADLINE, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = engine_times(&testbed.decode).await.since(engine_before);
        (now.ttft.1 >= streams).then_some(now)
    })
    .await;
    let mean = |(sum, count): (f64, f64)| sum / count;
    let (engine_ttft, kernel_ttft) = (mean(engine.ttft), mean(kernel.ttft));
    let (engine_itl, kernel_itl) = (mean(engine.itl), mean(kernel.itl));
    println!("  first token: engine {engine_ttft:.1} ms, kernel {kernel_ttft:.1} ms (means)");
    println!(
        "  between tokens: engine {engine_itl:.2} ms of {}, kernel {kernel_itl:.2} ms of {}",
        engine.itl.1, kernel.itl.1
    );
    // The kernel measures on the wire, so its interval starts before the engine has parsed the
    // request and ends after the engine has sent the token.
    assert!(kernel_ttft > engine_ttft * 0.9, "the wire cannot be ahead of the engine");
    assert!(kernel_ttft < engine_ttft * 1.5 + 30.0, "the wire lags the engine");
    assert!((kernel_itl / engine_itl - 1.0).abs() < 0.25, "times between tokens differ");
}

/// Sums in milliseconds and counts.
#[derive(Clone, Copy, Debug)]
struct LatencySums {
    ttft: (f64, f64),
    itl: (f64, f64),
}

impl LatencySums {
    fn since(self, before: LatencySums) -> LatencySums {
        let less = |now: (f64, f64), before: (f64, f64)| (now.0 - before.0, now.1 - before.1);
        LatencySums { ttft: less(self.ttft, before.ttft), itl: less(self.itl, before.itl) }
    }
}

async fn engine_times(server: &Server) -> LatencySums {
    LatencySums {
        ttft: histogram(server, "time_to_first_token_seconds").await,
        itl: histogram(server, "inter_token_latency_seconds").await,
    }
}

async fn kernel_times(testbed: &TestBed) -> LatencySums {
    let loads = testbed.agent.loads().await;
    let of = |name: &str| {
        let latency = &pod(&loads, testbed.decode.name)[name];
        let number = |value: &Value| value.as_f64().expect("a number");
        (number(&latency["sum_ms"]), number(&latency["samples"]))
    };
    LatencySums { ttft: of("ttft"), itl: of("itl") }
}

async fn histogram(server: &Server, name: &str) -> (f64, f64) {
    let sum = metric(server, &format!("sglang:{name}_sum")).await;
    (sum * 1e3, metric(server, &format!("sglang:{name}_count")).await)
}

/// A metric of the engine, summed over its labels. 0 before its first sample.
async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.client().get("/metrics").await.expect_status(200).text();
    router_tests::gateway::metric(&text, name, &[])
}
