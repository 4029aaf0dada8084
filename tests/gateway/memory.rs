//! What a request costs in memory.

use router_tests::fleet::SOON;
use router_tests::{Fleet, Gateway, eventually};
use serde_json::{Value, json};
use sglang_sim::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{CHAT, chat, streamed};

const BODY: usize = 4 << 20;
const SAMPLES: usize = 16;

#[tokio::test]
async fn a_long_body_costs_the_same_memory_for_many_samples() {
    let fleet = Fleet::start(1, 1).await;
    let gateway =
        fleet.gateway_with(&["--max-body", "8388608", "--max-body-memory", "8388608"]).await;
    let mut body = streamed("hello");
    body["padding"] = "x".repeat(BODY).into();
    body["n"] = json!(SAMPLES);
    body["max_tokens"] = json!(1);
    gateway.client.post(CHAT, &streamed("hello")).await.expect_status(200);
    let before = gateway.resident_bytes();
    gateway.client.post(CHAT, &body).await.expect_status(200);
    let grown = gateway.peak_bytes().saturating_sub(before);
    // The body once, what was read of it before it was put together, and the runtime's own buffers.
    assert!(grown < 4 * BODY as u64, "grew by {grown} bytes for a body of {BODY}");
    assert_eq!(fleet.prefill[0].legs().len(), SAMPLES + 1);
}

/// A chat response of that many bytes.
fn large_answer(bytes: usize) -> Action {
    let message = json!({"role": "assistant", "content": "x".repeat(bytes)});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let body = json!({"object": "chat.completion", "choices": [choice]}).to_string();
    Action::Status { status: 200, body }
}

/// A client that has sent a chat request and reads only the beginning of its answer.
async fn client_that_stops_reading(gateway: &Gateway) -> TcpStream {
    let body = chat("hi").to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json");
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut status = [0; 12];
    socket.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");
    socket
}

/// The requests that the gateway counts at its workers.
async fn usage(gateway: &Gateway) -> u64 {
    let fleet = gateway.fleet().await;
    let members = fleet["pools"][0]["members"].as_array().expect("members");
    let requests =
        |member: &Value| member["worker"]["usage"]["requests"].as_u64().expect("a count");
    members.iter().map(requests).sum()
}

#[tokio::test]
async fn whole_responses_are_bounded_together() {
    // More than the socket buffers of one client hold.
    const RESPONSE: usize = 16 << 20;
    let fleet = Fleet::start_single(1).await;
    let limit = (5 * RESPONSE / 2).to_string();
    let flags = ["--max-response", &limit, "--max-response-memory", &limit];
    let gateway = fleet.gateway_with(&flags).await;
    fleet.unified[0].always(large_answer(RESPONSE));
    let held =
        [client_that_stops_reading(&gateway).await, client_that_stops_reading(&gateway).await];
    let refused = gateway.client.post(CHAT, &chat("hi")).await.expect_status(503);
    assert_eq!(refused.header("x-pd-router-reason"), "response_memory");
    assert_eq!(refused.header("retry-after"), "1");
    drop(held);
    eventually("a response fits again", SOON, async || {
        (gateway.client.post(CHAT, &chat("hi")).await.status == 200).then_some(())
    })
    .await;
    eventually("no worker has a request", SOON, async || {
        (usage(&gateway).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_response_over_its_limit_is_said_to_be_that_and_not_generated_twice() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--max-response", "20000"]).await;
    fleet.decode.iter().for_each(|decode| decode.always(large_answer(30_000)));
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(502);
    assert_eq!(answer.header("x-pd-router-reason"), "decode_response_too_large");
    assert_eq!(answer.header("x-should-retry"), "false");
    assert_eq!(answer.header("retry-after"), "");
    assert!(answer.error_message().contains("20000 bytes"), "{}", answer.text());
    let tried: usize = fleet.decode.iter().map(|decode| decode.legs().len()).sum();
    assert_eq!(tried, 1);
    let down = gateway.metric("pd_router_worker_up", &[]).await;
    assert_eq!(down, 3.0, "a worker was charged");
}
