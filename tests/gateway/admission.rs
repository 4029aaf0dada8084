//! Admission: what fits nowhere waits in a bounded queue, with a deadline, in order.

use std::time::Duration;

use router_tests::fleet::SOON;
use router_tests::{Answer, Client, Fleet, Gateway, Stream, eventually};
use sglang_sim::Config;
use tokio::task::JoinHandle;

use crate::{CHAT, chat, streamed};

/// One slot at the only decode.
async fn one_slot(flags: &[&str]) -> (Fleet, Gateway) {
    let fleet =
        Fleet::start_with(1, 1, |config| Config { max_running_requests: 1, ..config }).await;
    let gateway = fleet.gateway_with(flags).await;
    // The gateway learns the engine's limit from the engine.
    gateway.client.post(CHAT, &chat("warm")).await.expect_status(200);
    (fleet, gateway)
}

/// A stream that holds the slot until it is dropped.
async fn hold_the_slot(gateway: &Gateway) -> Stream {
    let mut body = streamed("hold");
    body["max_tokens"] = 100_000.into();
    body["ignore_eos"] = true.into();
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    stream
}

fn ask(client: Client, message: &str) -> JoinHandle<Answer> {
    let body = chat(message);
    tokio::spawn(async move { client.post(CHAT, &body).await })
}

async fn queued(gateway: &Gateway, count: f64) {
    eventually(&format!("{count} requests wait"), SOON, async || {
        (gateway.metric("pd_router_requests_queued", &[]).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn prefill_does_not_see_a_request_that_waits_for_capacity() {
    let (fleet, gateway) = one_slot(&[]).await;
    let holder = hold_the_slot(&gateway).await;
    let waiting = ask(gateway.client, "second");
    queued(&gateway, 1.0).await;
    assert_eq!(fleet.prefill[0].legs().len(), 2, "prefill's clock was started too early");
    drop(holder);
    waiting.await.expect("no panic").expect_status(200);
    queued(&gateway, 0.0).await;
}

#[tokio::test]
async fn a_request_that_the_decode_kv_pool_cannot_hold_waits() {
    let fleet = Fleet::start_with(1, 1, |config| Config { max_total_tokens: 3000, ..config }).await;
    let gateway = fleet.gateway().await;
    let mut body = streamed("hold");
    (body["max_tokens"], body["ignore_eos"]) = (2000.into(), true.into());
    let mut holder = gateway.client.open(CHAT, &body).await;
    holder.next().await.expect("a first event");
    let client = gateway.client;
    let mut second = chat("second");
    second["max_tokens"] = 2000.into();
    let waiting = tokio::spawn(async move { client.post(CHAT, &second).await });
    queued(&gateway, 1.0).await;
    assert_eq!(fleet.prefill[0].legs().len(), 1, "prefill's clock was started too early");
    drop(holder);
    waiting.await.expect("no panic").expect_status(200);
}

#[tokio::test]
async fn a_full_queue_is_refused_at_once() {
    let (_fleet, gateway) = one_slot(&["--max-queued", "1"]).await;
    let _holder = hold_the_slot(&gateway).await;
    let _waiting = ask(gateway.client, "second");
    queued(&gateway, 1.0).await;
    let answer = gateway.client.post(CHAT, &chat("third")).await.expect_status(429);
    assert_eq!(answer.header("x-pd-router-reason"), "queue_full");
    assert!(!answer.header("retry-after").is_empty());
    assert!(answer.took < SOON, "{:?}", answer.took);
}

#[tokio::test]
async fn a_request_that_waits_too_long_gets_503() {
    let (_fleet, gateway) = one_slot(&["--queue-timeout", "300ms"]).await;
    let _holder = hold_the_slot(&gateway).await;
    let answer = gateway.client.post(CHAT, &chat("second")).await.expect_status(503);
    assert_eq!(answer.header("x-pd-router-reason"), "queue_timeout");
    assert!(!answer.header("retry-after").is_empty());
    let waited = answer.took;
    assert!(waited >= Duration::from_millis(300) && waited < SOON, "{waited:?}");
    queued(&gateway, 0.0).await;
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_reaches_no_engine() {
    let (fleet, gateway) = one_slot(&["--max-queued", "1"]).await;
    let holder = hold_the_slot(&gateway).await;
    let leaving = ask(gateway.client, "leaves");
    queued(&gateway, 1.0).await;
    leaving.abort();
    queued(&gateway, 0.0).await;
    let staying = ask(gateway.client, "stays");
    queued(&gateway, 1.0).await;
    drop(holder);
    staying.await.expect("no panic").expect_status(200);
    let asked = fleet.decode[0].legs();
    assert!(!asked.iter().any(|leg| String::from_utf8_lossy(&leg.body).contains("leaves")));
}

#[tokio::test]
async fn waiting_requests_are_served_in_their_order() {
    let (fleet, gateway) = one_slot(&[]).await;
    let holder = hold_the_slot(&gateway).await;
    let mut waiting = Vec::new();
    for place in 0..4 {
        waiting.push(ask(gateway.client, &format!("place {place}")));
        queued(&gateway, f64::from(place + 1)).await;
    }
    drop(holder);
    for answer in waiting {
        answer.await.expect("no panic").expect_status(200);
    }
    let order: Vec<String> = fleet.decode[0].legs()[2..]
        .iter()
        .map(|leg| leg.json()["messages"][0]["content"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(order, ["place 0", "place 1", "place 2", "place 3"]);
}
