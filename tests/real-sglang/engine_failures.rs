//! Engines that die or freeze during a request, and recover.

use std::time::{Duration, Instant};

use router_tests::client::End;
use router_tests::{Gateway, eventually};
use serde_json::{Value, json};

use crate::answer::send;
use crate::comparison::matches;
use crate::requests::{self, RequestCase};
use crate::testbed::TestBed;

/// Time within which the client gets an error after an engine has died.
const FAILURE_DEADLINE: Duration = Duration::from_secs(1);
/// Time within which a returned engine serves again.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(20);
/// The gateway's `--unresponsive-timeout` in the test of a frozen engine.
const SILENT: Duration = Duration::from_secs(3);
/// Time until the gateway calls a frozen engine silent: two probes one second apart, each with one
/// second for its answer, and time for a busy machine.
const PROBING: Duration = Duration::from_secs(5);

/// Prefill is killed while it computes a long prompt: the client gets a 502.
pub(crate) async fn prefill_dies(testbed: &mut TestBed) {
    let gateway = testbed.gateway_of_one_pair(&["--max-attempts", "1"]).await;
    let client = gateway.client;
    let body = long_prompt();
    let waiting = tokio::spawn(async move { client.post("/v1/chat/completions", &body).await });
    testbed.wait_until_prefill_has_a_request().await;
    let killed = Instant::now();
    testbed.prefill.kill();
    let answer = waiting.await.expect("an answer");
    println!("  prefill killed: {} after {:.3} s", answer.status, killed.elapsed().as_secs_f32());
    assert!(killed.elapsed() < FAILURE_DEADLINE, "failed after {:?}", killed.elapsed());
    assert_eq!(answer.status.as_u16(), 502, "{}", answer.text());
    assert!(answer.header("x-pd-router-reason").starts_with("prefill"), "{:?}", answer.headers);
    testbed.prefill.restart().await;
    assert_recovered(testbed, &gateway).await;
}

/// Decode is killed during a stream: the client keeps what arrived, and the stream ends with an
/// error.
pub(crate) async fn decode_dies(testbed: &mut TestBed) {
    let gateway = testbed.gateway_of_one_pair(&["--max-attempts", "1"]).await;
    let mut stream = gateway.client.open("/v1/chat/completions", &endless()).await;
    for _ in 0..5 {
        stream.next().await.expect("an event");
    }
    let killed = Instant::now();
    testbed.decode.kill();
    let (events, end) = stream.events().await;
    println!("  decode killed: failed after {:.3} s", killed.elapsed().as_secs_f32());
    assert!(killed.elapsed() < FAILURE_DEADLINE, "failed after {:?}", killed.elapsed());
    assert_eq!(end, End::Clean);
    let error = events.iter().map(|event| &event.data).find(|data| data.contains("\"error\""));
    assert!(error.is_some_and(|error| error.contains("decode")), "{events:?}");
    testbed.decode.restart().await;
    assert_recovered(testbed, &gateway).await;
}

/// Prefill is stopped while it computes: its ports are open and nothing answers.
pub(crate) async fn prefill_freezes(testbed: &mut TestBed) {
    let silent = format!("{}s", SILENT.as_secs());
    let flags = ["--max-attempts", "1", "--unresponsive-timeout", &silent];
    let gateway = testbed.gateway_of_one_pair(&flags).await;
    let client = gateway.client;
    let body = long_prompt();
    let waiting = tokio::spawn(async move { client.post("/v1/chat/completions", &body).await });
    testbed.wait_until_prefill_has_a_request().await;
    let frozen = Instant::now();
    testbed.prefill.freeze();
    let answer = waiting.await.expect("an answer");
    println!("  prefill frozen: {} after {:.1} s", answer.status, frozen.elapsed().as_secs_f32());
    assert!(frozen.elapsed() < SILENT + PROBING, "failed after {:?}", frozen.elapsed());
    assert_eq!(answer.status.as_u16(), 502, "{}", answer.text());
    assert!(answer.header("x-pd-router-reason").starts_with("prefill"), "{:?}", answer.headers);
    testbed.prefill.thaw();
    assert_recovered(testbed, &gateway).await;
}

/// The prefill of this version exits when it is asked for top logprobs. Only one of two may exit.
pub(crate) async fn prefill_crash_is_contained(testbed: &mut TestBed) {
    if testbed.second.is_none() {
        println!("  nothing to see with one prefill: memory is short");
        return;
    }
    let gateway = testbed.gateway(&["--max-engine-crashes", "1"]).await;
    let mut body = requests::generate("a router", 4);
    (body["return_logprob"], body["top_logprobs_num"]) = (true.into(), 2.into());
    let answer = gateway.client.post("/generate", &body).await;
    let reason = answer.header("x-pd-router-reason").to_owned();
    println!("  {} {reason} after {:.3} s", answer.status, answer.took.as_secs_f32());
    let ended: Vec<&str> = [Some(&mut testbed.prefill), testbed.second.as_mut()]
        .into_iter()
        .flatten()
        .filter_map(|server| server.has_exited().then_some(server.name))
        .collect();
    assert_eq!(ended.len(), 1, "{ended:?} ended");
    assert_eq!((answer.status.as_u16(), reason.as_str()), (502, "prefill_died"));
    assert_eq!(answer.header("x-should-retry"), "false");
    assert_serves(testbed, &gateway).await;
}

/// The next requests get the reference's answer, and both engines become idle.
async fn assert_recovered(testbed: &TestBed, gateway: &Gateway) {
    assert_serves(testbed, gateway).await;
    testbed.wait_until_idle().await;
}

async fn assert_serves(testbed: &TestBed, gateway: &Gateway) {
    let case = RequestCase {
        name: "the first request after".into(),
        path: "/generate",
        body: requests::generate("the cache waits for every prompt", 12),
    };
    let expected = send(&testbed.reference(), &case).await;
    let start = Instant::now();
    eventually("the pair serves again", RECOVERY_DEADLINE, async || {
        let got = send(&gateway.client, &case).await;
        let served = got.status.is_success();
        assert!(!served || matches(&got, &expected), "{got:?} is not {expected:?}");
        served.then_some(())
    })
    .await;
    println!("  served again after {:.1} s", start.elapsed().as_secs_f32());
}

/// A prompt that takes prefill several seconds.
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
