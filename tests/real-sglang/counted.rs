//! What the agent counts in the kernel, beside what the engines and the kernel itself say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use router_tests::eventually;
use router_tests::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};
use serde_json::{Value, json};

use crate::agent::{kv_bytes, open_connections, pod};
use crate::requests;
use crate::server::Server;
use crate::world::World;

/// Ports that Mooncake takes.
const MOONCAKE: std::ops::RangeInclusive<u16> = 15_000..=17_000;
/// Until counters that are read now and then have caught up.
const CAUGHT_UP: Duration = Duration::from_secs(20);
/// What Mooncake's framing and auxiliary data may add to the KV cache.
const FRAMING: f64 = 0.02;
const STREAMS: u32 = 24;
const TOKENS: u32 = 32;

/// The bytes of each pair against the engine's own count of what it transferred.
pub(crate) async fn kv(world: &mut World) {
    let gateway = world.gateway(&["--policy", "round_robin"]).await;
    let before = moved(world).await;
    for number in 0..24 {
        let words = format!("a cache moves {number} times ").repeat(60 + 10 * number);
        let body = requests::generate(&words, 2);
        gateway.client.post("/generate", &body).await.expect_status(200);
    }
    world.idle().await;
    for (place, prefill) in world.prefills().enumerate() {
        let what = format!("{} has told of its transfers", prefill.name);
        let (engine, agent) = eventually(&what, CAUGHT_UP, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = moved(world).await;
            let engine = now[place].0 - before[place].0;
            let agent = now[place].1 - before[place].1;
            // What is under way is in one of the two only.
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

/// Bytes of each prefill to the decode: as the engine says, and as the agent does.
async fn moved(world: &World) -> Vec<(f64, f64)> {
    let loads = world.agent.loads().await;
    let mut moved = Vec::new();
    for prefill in world.prefills() {
        let mib = metric(prefill, "sglang:kv_transfer_total_mb_sum").await;
        let agent = kv_bytes(&loads, prefill.name, world.decode.name) as f64;
        moved.push((mib * f64::from(1 << 20), agent));
    }
    moved
}

/// Every connection between engines is in its class, as many as `ss` shows in the pods.
pub(crate) async fn connections(world: &mut World) {
    let gateway = world.gateway(&["--policy", "round_robin"]).await;
    for number in 0..6 {
        let body = requests::generate(&format!("a connection carries {number}"), 2);
        gateway.client.post("/generate", &body).await.expect_status(200);
    }
    world.idle().await;
    // Heartbeats open and close some while one looks.
    let until = Instant::now() + CAUGHT_UP;
    let same = loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let shown = shown_by_ss(world);
        let counted = counted_by_agent(world).await;
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

async fn counted_by_agent(world: &World) -> Connections {
    let loads = world.agent.loads().await;
    let between_engines = |name: &str| world.engines().any(|server| server.name == name);
    let rows = open_connections(&loads).into_iter();
    rows.filter(|(pod, peer, ..)| pod != peer && between_engines(pod) && between_engines(peer))
        .map(|(pod, peer, class, open)| ((pod, peer, class), open))
        .collect()
}

fn shown_by_ss(world: &World) -> Connections {
    let mut shown = Connections::new();
    for server in world.engines() {
        let lines = server.pod.netns.sh("ss -Htn state established");
        for line in lines.lines() {
            let mut words = line.split_whitespace().skip(2);
            let (local, remote) = (words.next(), words.next());
            let (Some(local), Some(remote)) = (local.and_then(address), remote.and_then(address))
            else {
                continue;
            };
            let peer = world.engines().find(|peer| peer.ip().to_string() == remote.0);
            if let Some(peer) = peer.filter(|peer| peer.name != server.name) {
                let key = (server.name.into(), peer.name.into(), class(local.1, remote.1).into());
                *shown.entry(key).or_default() += 1;
            }
        }
    }
    shown
}

/// `ADDRESS:PORT` as ss writes it, IPv4 in IPv6's clothes too.
fn address(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_start_matches("::ffff:");
    Some((host.to_owned(), port.parse().ok()?))
}

/// By the ports that the servers listen on, none of which the agent was told but two.
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

/// Times to the first token and between tokens, against the engine's own histograms.
pub(crate) async fn latencies(world: &mut World) {
    // Neither a probe nor a question for its load is among decode's answers meanwhile.
    let flags = ["--probe-interval", "1h", "--engine-load-interval", "1h"];
    let gateway = world.gateway(&flags).await;
    world.idle().await;
    // The questions to the engine are answers that the kernel counts: before its own first
    // reading, and after its last.
    let engine_before = engine_times(&world.decode).await;
    let kernel_before = eventually("the agent has counted the questions", CAUGHT_UP, async || {
        let first = kernel_times(world).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let second = kernel_times(world).await;
        (first.ttft == second.ttft).then_some(second)
    })
    .await;
    for number in 0..STREAMS {
        let mut body = requests::chat(&format!("a stream tells {number} words"), TOKENS);
        (body["stream"], body["ignore_eos"]) = (true.into(), json!(true));
        let (events, _) = gateway.client.open("/v1/chat/completions", &body).await.events().await;
        assert!(events.len() > TOKENS as usize / 2, "{events:?}");
    }
    let streams = f64::from(STREAMS);
    let kernel = eventually("the agent has counted every stream", CAUGHT_UP, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = kernel_times(world).await.since(kernel_before);
        (now.ttft.1 >= streams).then_some(now)
    })
    .await;
    assert_eq!(kernel.ttft.1, streams, "answers beside the streams");
    let engine = eventually("the engine has counted every stream", CAUGHT_UP, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = engine_times(&world.decode).await.since(engine_before);
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
    // The kernel's clock starts at the wire, before the engine has read and parsed the request,
    // and ends there.
    assert!(kernel_ttft > engine_ttft * 0.9, "the wire cannot be ahead of the engine");
    assert!(kernel_ttft < engine_ttft * 1.5 + 30.0, "the wire lags the engine");
    assert!((kernel_itl / engine_itl - 1.0).abs() < 0.25, "times between tokens differ");
}

/// Sums in milliseconds and counts.
#[derive(Clone, Copy, Debug)]
struct Times {
    ttft: (f64, f64),
    itl: (f64, f64),
}

impl Times {
    fn since(self, before: Times) -> Times {
        let less = |now: (f64, f64), before: (f64, f64)| (now.0 - before.0, now.1 - before.1);
        Times { ttft: less(self.ttft, before.ttft), itl: less(self.itl, before.itl) }
    }
}

async fn engine_times(server: &Server) -> Times {
    Times {
        ttft: histogram(server, "time_to_first_token_seconds").await,
        itl: histogram(server, "inter_token_latency_seconds").await,
    }
}

async fn kernel_times(world: &World) -> Times {
    let loads = world.agent.loads().await;
    let of = |name: &str| {
        let latency = &pod(&loads, world.decode.name)[name];
        let number = |value: &Value| value.as_f64().expect("a number");
        (number(&latency["sum_ms"]), number(&latency["samples"]))
    };
    Times { ttft: of("ttft"), itl: of("itl") }
}

async fn histogram(server: &Server, name: &str) -> (f64, f64) {
    let sum = metric(server, &format!("sglang:{name}_sum")).await;
    (sum * 1e3, metric(server, &format!("sglang:{name}_count")).await)
}

/// A metric of the engine, summed over its labels; 0 before it has any.
async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.client().get("/metrics").await.expect_status(200).text();
    router_tests::gateway::metric(&text, name, &[])
}
