//! Blame: only the worker at fault loses its turn, and it has it again when it is back.

use std::time::{Duration, Instant};

use router_tests::fleet::Engine;
use router_tests::{Fleet, Gateway, eventually};
use sglang_sim::Action;

use crate::{CHAT, chat};

const FLAGS: [&str; 6] =
    ["--policy", "round_robin", "--probe-interval", "100ms", "--probe-timeout", "300ms"];

async fn ask(gateway: &Gateway, times: usize) {
    for _ in 0..times {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
}

/// Sends requests until the engine has had its first one, at which its script fails.
async fn first_failure(gateway: &Gateway, engine: &Engine) {
    eventually("the script applies", Duration::from_secs(10), async || {
        // The request that it applies to may fail.
        gateway.client.post(CHAT, &chat("hi")).await;
        (engine.legs().len() == 1).then_some(())
    })
    .await;
}

/// How many more requests each engine has got since `before`.
fn shares(fleet: &Fleet, before: &[usize]) -> Vec<usize> {
    counts(fleet).iter().zip(before).map(|(now, before)| now - before).collect()
}

fn counts(fleet: &Fleet) -> Vec<usize> {
    fleet.engines().map(|engine| engine.legs().len()).collect()
}

#[tokio::test]
async fn a_dead_decode_blames_decode_only() {
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway_with(&FLAGS).await;
    fleet.decode[0].once(Action::DieBeforeHead);
    first_failure(&gateway, &fleet.decode[0]).await;
    let before = counts(&fleet);
    ask(&gateway, 8).await;
    assert_eq!(shares(&fleet, &before), [4, 4, 0, 8], "prefill-0, prefill-1, decode-0, decode-1");
}

#[tokio::test]
async fn a_dead_prefill_blames_prefill_only() {
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway_with(&FLAGS).await;
    fleet.prefill[0].once(Action::DieBeforeHead);
    first_failure(&gateway, &fleet.prefill[0]).await;
    let before = counts(&fleet);
    ask(&gateway, 8).await;
    assert_eq!(shares(&fleet, &before), [0, 8, 4, 4], "prefill-0, prefill-1, decode-0, decode-1");
}

#[tokio::test]
async fn an_engine_that_fails_requests_is_chosen_less() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&[&FLAGS[..], &["--max-attempts", "1"]].concat()).await;
    fleet.decode[0].always(Action::Status { status: 500, body: r#"{"message":"no"}"#.into() });
    let mut failed = 0;
    for _ in 0..40 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await;
        failed += usize::from(answer.status == 500);
    }
    // Every second request would be twenty; it is given another chance now and then.
    assert!((1..=12).contains(&failed), "{failed} of 40 failed");
}

/// Sends a request of eight samples to prefills that all do this, and then as many single ones as `singles`
/// at once. Returns how many of these the prefill of the first and the other one got.
async fn after_eight_samples(action: Action, status: u16, singles: usize) -> (usize, usize) {
    const SAMPLES: usize = 8;
    let fleet = Fleet::start(2, 1).await;
    // Decode's time ends first.
    let flags = ["--policy", "least_load", "--first-byte-timeout", "1s", "--max-attempts", "1"];
    let gateway = fleet.gateway_with(&flags).await;
    fleet.prefill.iter().for_each(|prefill| prefill.always(action.clone()));
    let mut body = chat("hi");
    body["n"] = SAMPLES.into();
    gateway.client.post(CHAT, &body).await.expect_status(status);
    let before = counts(&fleet);
    assert_eq!(before[0].min(before[1]), 0, "both prefills got samples: {before:?}");
    for prefill in &fleet.prefill {
        prefill.heal();
        prefill.always(Action::HangHead);
    }
    let client = gateway.client;
    let clients: Vec<_> = (0..singles)
        .map(|_| tokio::spawn(async move { client.post(CHAT, &chat("hi")).await.status }))
        .collect();
    let arrived = || shares(&fleet, &before)[..2].iter().sum::<usize>() >= singles;
    let limit = Duration::from_secs(10);
    eventually("they arrive", limit, async || arrived().then_some(())).await;
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    let after = shares(&fleet, &before);
    if before[0] > 0 { (after[0], after[1]) } else { (after[1], after[0]) }
}

#[tokio::test]
async fn a_prefill_that_is_blamed_for_a_timeout_keeps_the_weight_of_its_request() {
    let shares = after_eight_samples(Action::HangHead, 504, 8).await;
    assert_eq!(shares, (0, 8), "the one that hung, and the other");
}

#[tokio::test]
async fn a_request_of_many_samples_leaves_its_weight_once() {
    let refusal = Action::Status { status: 400, body: r#"{"message":"no"}"#.into() };
    let shares = after_eight_samples(refusal, 400, 24).await;
    // As many as its samples fewer than the other.
    assert!((6..12).contains(&shares.0), "{shares:?}: the one that refused, and the other");
}

/// Asks a fleet of two pairs in which an engine breaks every transfer. Returns how many requests each
/// engine got.
async fn with_broken_transfers(choose: fn(&Fleet) -> &Engine, message: &str) -> Vec<usize> {
    let fleet = Fleet::start(2, 2).await;
    // Load and the weight of failed requests do not count: what is left is the ejection.
    let flags = ["--policy", "random", "--probe-interval", "100ms"];
    let gateway = fleet.gateway_with(&flags).await;
    let body = format!(r#"{{"object":"error","message":"{message}","code":500}}"#);
    choose(&fleet).always(Action::Status { status: 500, body });
    ask(&gateway, 60).await;
    counts(&fleet)
}

#[tokio::test]
async fn a_prefill_that_breaks_every_transfer_is_left_and_its_partners_are_not() {
    let message = "Prefill transfer failed for request rank=0 with exception \
                   KVTransferError(bootstrap_room=7): Decode instance could be dead";
    let legs = with_broken_transfers(|fleet| &fleet.prefill[0], message).await;
    assert!((3..=12).contains(&legs[0]), "prefill-0 is left: {legs:?}");
    assert!(legs[2].min(legs[3]) >= 20, "decodes are charged: {legs:?}");
}

#[tokio::test]
async fn a_decode_that_breaks_every_transfer_is_left_and_its_partners_are_not() {
    let message = "Decode transfer failed for request rank=0 with exception \
                   KVTransferError(bootstrap_room=7): Failed to get kvcache from prefill instance, \
                   it might be dead";
    let legs = with_broken_transfers(|fleet| &fleet.decode[0], message).await;
    assert!((3..=12).contains(&legs[2]), "decode-0 is left: {legs:?}");
    assert!(legs[0].min(legs[1]) >= 20, "prefills are charged: {legs:?}");
}

#[tokio::test]
async fn refusals_that_all_engines_share_blame_none() {
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway_with(&FLAGS).await;
    let refusal = || Action::Status { status: 400, body: r#"{"message":"no"}"#.into() };
    fleet.decode.iter().for_each(|decode| decode.always(refusal()));
    for _ in 0..20 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(400);
    }
    fleet.decode.iter().for_each(Engine::heal);
    let before = counts(&fleet);
    ask(&gateway, 8).await;
    assert_eq!(shares(&fleet, &before), [4, 4, 4, 4]);
}

#[tokio::test]
async fn a_decode_that_came_back_serves_within_a_second() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&FLAGS).await;
    let down = Duration::from_millis(600);
    fleet.decode[0].once(Action::Restart { down_ms: 600, registry_delay_ms: 0 });
    first_failure(&gateway, &fleet.decode[0]).await;
    let start = Instant::now();
    eventually("decode-0 serves again", Duration::from_secs(10), async || {
        ask(&gateway, 1).await;
        (fleet.decode[0].legs().len() > 1).then_some(())
    })
    .await;
    // A second for the gateway, and one for this machine.
    assert!(start.elapsed() < down + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_prefill_that_came_back_serves_when_its_registry_is_full() {
    let fleet = Fleet::start(2, 1).await;
    let gateway = fleet.gateway_with(&FLAGS).await;
    // From before it restarts: requests until its failure may take long on a busy machine.
    let start = Instant::now();
    fleet.prefill[0].once(Action::Restart { down_ms: 100, registry_delay_ms: 1500 });
    first_failure(&gateway, &fleet.prefill[0]).await;
    eventually("prefill-0 serves again", Duration::from_secs(10), async || {
        ask(&gateway, 1).await;
        (fleet.prefill[0].legs().len() > 1).then_some(())
    })
    .await;
    assert!(start.elapsed() > Duration::from_millis(1500), "used with its registry empty");
}

#[tokio::test]
async fn an_unhealthy_engine_is_tried_if_there_is_no_other() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    fleet.decode[0].always(Action::Status { status: 500, body: r#"{"message":"no"}"#.into() });
    for _ in 0..20 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(500);
    }
    fleet.decode[0].heal();
    ask(&gateway, 1).await;
}
