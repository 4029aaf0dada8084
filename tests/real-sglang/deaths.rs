//! Engines that die or freeze in the middle of a request, and come back.

use std::time::{Duration, Instant};

use router_tests::client::End;
use router_tests::{Gateway, eventually};
use serde_json::{Value, json};

use crate::answer::said;
use crate::answers::same;
use crate::requests::{self, Ask};
use crate::world::World;

/// A client is told within this once an engine is gone.
const TOLD: Duration = Duration::from_secs(1);
/// For a returned engine to be let in again.
const BACK: Duration = Duration::from_secs(20);
/// The gateway's `--silent-timeout` in the test of a frozen engine.
const SILENT: Duration = Duration::from_secs(3);
/// Until it is called silent: two probes a second apart, each with a second for its answer, and a
/// machine that has other work.
const PROBING: Duration = Duration::from_secs(5);

/// Killed while it computes a long prompt: nothing has been promised to the client yet.
pub(crate) async fn prefill_dies(world: &mut World) {
    let gateway = world.gateway_of_one_pair(&["--max-attempts", "1"]).await;
    let client = gateway.client;
    let body = long_prompt();
    let waiting = tokio::spawn(async move { client.post("/v1/chat/completions", &body).await });
    world.prefill_computes().await;
    let killed = Instant::now();
    world.prefill.kill();
    let answer = waiting.await.expect("an answer");
    println!("  prefill killed: {} after {:.3} s", answer.status, killed.elapsed().as_secs_f32());
    assert!(killed.elapsed() < TOLD, "told after {:?}", killed.elapsed());
    assert_eq!(answer.status.as_u16(), 502, "{}", answer.text());
    assert!(answer.header("x-pd-router-reason").starts_with("prefill"), "{:?}", answer.headers);
    world.prefill.restart().await;
    heals(world, &gateway).await;
}

/// Killed in the middle of a stream: what came is kept, and the stream ends with an error.
pub(crate) async fn decode_dies(world: &mut World) {
    let gateway = world.gateway_of_one_pair(&["--max-attempts", "1"]).await;
    let mut stream = gateway.client.open("/v1/chat/completions", &endless()).await;
    for _ in 0..5 {
        stream.next().await.expect("an event");
    }
    let killed = Instant::now();
    world.decode.kill();
    let (events, end) = stream.events().await;
    println!("  decode killed: told after {:.3} s", killed.elapsed().as_secs_f32());
    assert!(killed.elapsed() < TOLD, "told after {:?}", killed.elapsed());
    assert_eq!(end, End::Clean);
    let error = events.iter().map(|event| &event.data).find(|data| data.contains("\"error\""));
    assert!(error.is_some_and(|error| error.contains("decode")), "{events:?}");
    world.decode.restart().await;
    heals(world, &gateway).await;
}

/// Stopped while it computes: its ports are open and nothing answers.
pub(crate) async fn prefill_freezes(world: &mut World) {
    let silent = format!("{}s", SILENT.as_secs());
    let flags = ["--max-attempts", "1", "--silent-timeout", &silent];
    let gateway = world.gateway_of_one_pair(&flags).await;
    let client = gateway.client;
    let body = long_prompt();
    let waiting = tokio::spawn(async move { client.post("/v1/chat/completions", &body).await });
    world.prefill_computes().await;
    let frozen = Instant::now();
    world.prefill.freeze();
    let answer = waiting.await.expect("an answer");
    println!("  prefill frozen: {} after {:.1} s", answer.status, frozen.elapsed().as_secs_f32());
    assert!(frozen.elapsed() < SILENT + PROBING, "told after {:?}", frozen.elapsed());
    assert_eq!(answer.status.as_u16(), 502, "{}", answer.text());
    assert!(answer.header("x-pd-router-reason").starts_with("prefill"), "{:?}", answer.headers);
    world.prefill.thaw();
    heals(world, &gateway).await;
}

/// This version's prefill exits when it is asked for top logprobs: one does, and not the next.
pub(crate) async fn poison(world: &mut World) {
    if world.second.is_none() {
        println!("  nothing to see with one prefill: memory is short");
        return;
    }
    let gateway = world.gateway(&[]).await;
    let mut body = requests::generate("a router", 4);
    (body["return_logprob"], body["top_logprobs_num"]) = (true.into(), 2.into());
    let answer = gateway.client.post("/generate", &body).await;
    let reason = answer.header("x-pd-router-reason").to_owned();
    println!("  {} {reason} after {:.3} s", answer.status, answer.took.as_secs_f32());
    let ended: Vec<&str> = [Some(&mut world.prefill), world.second.as_mut()]
        .into_iter()
        .flatten()
        .filter_map(|server| server.has_ended().then_some(server.name))
        .collect();
    assert_eq!(ended.len(), 1, "{ended:?} ended");
    assert_eq!((answer.status.as_u16(), reason.as_str()), (502, "prefill_died"));
    assert_eq!(answer.header("x-should-retry"), "false");
    serves(world, &gateway).await;
}

/// The next requests are served, as the reference does, and nothing is left in the engines.
async fn heals(world: &World, gateway: &Gateway) {
    serves(world, gateway).await;
    world.idle().await;
}

async fn serves(world: &World, gateway: &Gateway) {
    let ask = Ask {
        name: "the first request after".into(),
        path: "/generate",
        body: requests::generate("the cache waits for every prompt", 12),
    };
    let expected = said(&world.reference(), &ask).await;
    let start = Instant::now();
    eventually("the pair serves again", BACK, async || {
        let got = said(&gateway.client, &ask).await;
        let served = got.status.is_success();
        assert!(!served || same(&got, &expected), "{got:?} is not {expected:?}");
        served.then_some(())
    })
    .await;
    println!("  served again after {:.1} s", start.elapsed().as_secs_f32());
}

/// So long that prefill needs seconds for it.
fn long_prompt() -> Value {
    let words: String = (0..600).map(|number| format!("word {number} the brown fox ")).collect();
    requests::chat(&words, 8)
}

fn endless() -> Value {
    let mut body = requests::chat("a stream without an end", 4_000);
    body["stream"] = true.into();
    body["ignore_eos"] = json!(true);
    body
}
