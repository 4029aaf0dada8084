//! SIGTERM: not ready at once, nothing new, streams finish, exit 0.

use std::time::Duration;

use nix::sys::signal::Signal;
use router_tests::{Fleet, Gateway, Stream, client::End, eventually};
use sglang_sim::Config;

use crate::{CHAT, chat, streamed};

const SOON: Duration = Duration::from_secs(5);

async fn with_a_stream(tokens: usize, flags: &[&str]) -> (Fleet, Gateway, Stream) {
    let inter_token = Duration::from_millis(10);
    let fleet = Fleet::start_with(1, 1, |config| Config { inter_token, ..config }).await;
    let gateway = fleet.gateway_with(flags).await;
    let mut body = streamed("hi");
    body["max_tokens"] = tokens.into();
    body["ignore_eos"] = true.into();
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    (fleet, gateway, stream)
}

async fn not_ready(gateway: &Gateway) {
    eventually("/readyz is 503", SOON, async || {
        (gateway.admin.get("/readyz").await.status == 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn signals_for_other_programs_neither_end_the_gateway_nor_its_streams() {
    let (_fleet, gateway, stream) = with_a_stream(100, &[]).await;
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM] {
        gateway.signal(signal);
        eventually("the signal is logged", SOON, async || {
            gateway.log().contains(&format!("{signal} ignored")).then_some(())
        })
        .await;
    }
    let answer = stream.answer().await.expect_status(200);
    assert!(answer.text().contains("[DONE]"), "{}", answer.text());
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
}

#[tokio::test]
async fn a_stream_finishes_and_nothing_new_is_taken() {
    let (_fleet, mut gateway, stream) = with_a_stream(400, &[]).await;
    gateway.terminate();
    not_ready(&gateway).await;
    eventually("what is waited for is logged", SOON, async || {
        let log = gateway.log();
        let mut lines = log.lines().filter(|line| line.contains("\"message\":\"draining\""));
        lines.any(|line| line.contains("\"requests\":1")).then_some(())
    })
    .await;
    assert_eq!(gateway.admin.get("/livez").await.status, 200);
    // What was accepted while the port was closing is served; soon nothing is accepted.
    eventually("new connections are refused", SOON, async || {
        let request = gateway.client.json_request(CHAT, chat("late").to_string());
        let answer = gateway.client.try_send(request).await.ok();
        answer.is_none_or(|answer| answer.status != 200).then_some(())
    })
    .await;
    let (events, end) = stream.events().await;
    assert_eq!(end, End::Clean);
    assert!(events.last().is_some_and(|event| event.is_done()));
    assert!(events.len() >= 399, "{} events", events.len());
    assert_eq!(gateway.ended(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn a_gateway_without_requests_ends_at_once() {
    let fleet = Fleet::start(1, 1).await;
    let mut gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    gateway.terminate();
    assert_eq!(gateway.ended(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn a_queued_stream_gets_an_error_event_when_the_drain_timeout_is_over() {
    let fleet = Fleet::start(1, 1).await;
    let flags = ["--drain-timeout", "300ms", "--sse-ping-interval", "100ms"];
    let mut gateway = fleet.gateway_with(&flags).await;
    let name = &fleet.decode[0].pod.name;
    fleet.manifests.remove_pod(name);
    eventually("the decode worker is gone", SOON, async || {
        (!gateway.fleet().await.to_string().contains(name)).then_some(())
    })
    .await;
    let mut stream = gateway.client.open(CHAT, &streamed("hi")).await;
    assert_eq!(stream.status, 200);
    stream.piece().await.expect("a comment");
    gateway.terminate();
    let (events, end) = stream.events().await;
    assert_eq!(end, End::Clean);
    assert!(events.iter().any(|event| event.data.contains("draining")), "{events:?}");
    assert_eq!(gateway.ended(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn engines_get_aborts_when_the_drain_timeout_is_over() {
    let (fleet, mut gateway, stream) = with_a_stream(100_000, &["--drain-timeout", "300ms"]).await;
    gateway.terminate();
    let leg = fleet.decode[0].legs_arrived(1).await.remove(0);
    assert_eq!(gateway.ended(SOON).await.code(), Some(0));
    drop(stream);
    fleet.decode[0].abort_arrived(&leg).await;
}
