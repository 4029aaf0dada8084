//! What engines of later versions do in their life: a change of role, decode allocation, pipeline stages.

use std::time::Duration;

use router_tests::{Client, Fleet, Gateway, eventually};
use serde_json::{Value, json};
use sglang_sim::{Action, Config, Received};

use crate::{CHAT, chat, streamed};

/// A change takes effect within this, on a busy machine too.
const EFFECT: Duration = Duration::from_secs(10);
const FLAGS: [&str; 4] = ["--probe-interval", "100ms", "--engine-info-interval", "200ms"];

async fn member(gateway: &Gateway, name: &str) -> Value {
    let fleet = gateway.fleet().await;
    let members = fleet["pools"][0]["members"].as_array().cloned().unwrap_or_default();
    members.into_iter().find(|member| member["worker"]["name"] == name).unwrap_or_default()
}

async fn switch(engine: &router_tests::fleet::Engine, role: &str) {
    let client = Client::new(engine.sim.address());
    client.post("/pd_role_switch", &json!({"new_role": role})).await.expect_status(200);
}

#[tokio::test]
async fn an_engine_that_changes_its_role_is_used_in_the_new_one() {
    let fleet =
        Fleet::start_with(2, 1, |config| Config { role_switch: true, ..config.instant() }).await;
    let gateway = fleet.gateway_with(&[&FLAGS[..], &["--policy", "round_robin"]].concat()).await;
    switch(&fleet.prefill[1], "decode").await;
    eventually("it is a decode", EFFECT, async || {
        let member = member(&gateway, "default/prefill-1").await;
        (member["role"] == "decode" && member["worker"]["health"] == "up").then_some(())
    })
    .await;
    assert!(gateway.log().contains("engine role changed"), "{}", gateway.log());
    let before = fleet.prefill[1].legs().len();
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let legs = fleet.prefill[1].legs();
    assert_eq!(legs.len() - before, 2, "round robin gives it its share of the decodes");
    switch(&fleet.prefill[1], "prefill").await;
    eventually("it is a prefill again", EFFECT, async || {
        let member = member(&gateway, "default/prefill-1").await;
        (member["role"] == "prefill" && member["worker"]["health"] == "up").then_some(())
    })
    .await;
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
}

#[tokio::test]
async fn pairs_with_different_decode_allocation_are_not_made_and_are_named() {
    let policy = |name: &'static str| {
        move |config: Config| Config {
            decode_allocation_policy: Some(name.into()),
            ..config.instant()
        }
    };
    let mut fleet = Fleet::start_with(1, 1, policy("default")).await;
    fleet.add(sglang_sim::Role::Decode, policy("prefill_complete")).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert!(fleet.decode[1].legs().is_empty());
    let page = gateway.fleet().await;
    let excluded = page["pools"][0]["excluded"].to_string();
    assert!(excluded.contains("default/decode-1"), "{excluded}");
    assert!(excluded.contains("decode allocation prefill_complete"), "{excluded}");
    let problems = page["problems"].to_string();
    assert!(problems.contains("DecodeAllocationMismatch"), "{problems}");
    assert!(problems.contains("prefill_complete (default/decode-1)"), "{problems}");
}

#[tokio::test]
async fn a_decode_that_retracts_a_request_is_followed_by_another() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    let message = "Request is retracted and the retraction backup is none";
    let body = format!(r#"{{"object":"error","message":"{message}","code":503}}"#);
    fleet.decode[0].always(Action::Status { status: 503, body });
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert!(!fleet.decode[0].legs().is_empty(), "it was never chosen");
    let retries = gateway.metric("pd_router_retries_total", &["reason=\"decode_error\""]).await;
    assert!(retries >= 1.0, "{retries}");
    let stream = gateway.client.open(CHAT, &streamed("hi")).await;
    assert_eq!(stream.status, 200);
}

#[tokio::test]
async fn a_pipelined_prefill_that_is_late_gets_an_abort() {
    let fleet = Fleet::start_with(1, 1, |config| Config { pp_size: 2, ..config.instant() }).await;
    let gateway = fleet.gateway_with(&["--prefill-timeout", "500ms"]).await;
    fleet.prefill[0].always(Action::HangHead);
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(504);
    let legs = fleet.prefill[0].legs_arrived(1).await;
    fleet.prefill[0].abort_arrived(&legs[0]).await;
}

/// Requests that are cancelled at once.
const STORM: usize = 300;

#[tokio::test]
async fn a_storm_of_cancels_reaches_a_pipelined_prefill_at_a_bounded_rate() {
    let fleet = Fleet::start_with(1, 1, |config| Config {
        pp_size: 2,
        max_running_requests: 4 * STORM,
        ..config.instant()
    })
    .await;
    let gateway = fleet.gateway().await;
    // No leg of prefill ends: its decode never asks for the KV cache.
    fleet.decode[0].always(Action::HangHead);
    let client = gateway.client;
    let clients: Vec<_> = (0..STORM)
        .map(|_| tokio::spawn(async move { client.post(CHAT, &chat("hi")).await.status }))
        .collect();
    let prefill = &fleet.prefill[0];
    let legs = prefill.legs_arrived(STORM).await;
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    let aborts = eventually("all are aborted", Duration::from_secs(30), async || {
        let aborts = prefill.aborts();
        // Those of requests that were young are repeated.
        let has_one = |leg: &Received| aborts.iter().any(|abort| leg.rids.contains(&abort.rid));
        legs.iter().all(has_one).then_some(aborts)
    })
    .await;
    for leg in &legs {
        let abort = aborts.iter().find(|abort| leg.rids.contains(&abort.rid));
        let abort = abort.unwrap_or_else(|| panic!("{:?} was not aborted", leg.rids));
        // A connection that is closed before its turn is an abort as well, without a rate.
        assert!(!abort.matched.is_empty(), "{:?} had ended before its abort", leg.rids);
    }
    let mut times: Vec<u64> = aborts.iter().map(|abort| abort.at_ms).collect();
    times.sort_unstable();
    let within = |at: u64| times.iter().filter(|time| (at..at + 1000).contains(*time)).count();
    let most = times.iter().map(|at| within(*at)).max().unwrap_or_default();
    println!("{STORM} aborts, at most {most} within a second");
    // 50 a second, and a few that a busy machine sends late.
    assert!(most <= 75, "{most} within a second");
    prefill.idle().await;
}
