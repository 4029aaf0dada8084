//! One leg fails: the client learns which and why in milliseconds, and the other engine stops.

use std::time::Duration;

use router_tests::fleet::SOON;
use router_tests::{Answer, Fleet, Gateway, client::End, eventually};
use serde_json::Value;
use sglang_sim::Action;

use crate::{CHAT, chat, streamed};

/// Probes often, so that a frozen engine shows soon; one attempt, so that its failure shows.
const WATCHFUL: [&str; 8] = [
    "--probe-interval",
    "100ms",
    "--probe-timeout",
    "200ms",
    "--unresponsive-timeout",
    "200ms",
    "--max-attempts",
    "1",
];

fn status(status: u16) -> Action {
    let body = r#"{"object":"error","message":"the engine says no","type":"BadRequest"}"#;
    Action::Status { status, body: body.into() }
}

async fn one_pair() -> (Fleet, Gateway) {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&WATCHFUL).await;
    (fleet, gateway)
}

/// Soon, with that status, in OpenAI's shape, and without an engine's address.
fn assert_error(answer: &Answer, status: u16, says: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert!(answer.took < SOON, "{:?}", answer.took);
    let message = answer.error_message();
    assert!(message.contains(says), "{message}");
    assert!(answer.json()["error"]["type"].is_string(), "{}", answer.text());
    assert!(!answer.text().contains("127."), "an engine's address: {}", answer.text());
    assert!(!answer.header("x-pd-router-reason").is_empty(), "{:?}", answer.headers);
}

#[tokio::test]
async fn a_prefill_that_refuses_is_an_answer_and_decode_is_aborted() {
    let (fleet, gateway) = one_pair().await;
    fleet.prefill[0].once(status(400));
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 400, "the engine says no");
    fleet.decode[0].until_aborted().await;
}

#[tokio::test]
async fn a_prefill_that_fails_is_named_and_decode_is_aborted() {
    let (fleet, gateway) = one_pair().await;
    fleet.prefill[0].once(status(500));
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 500, "prefill");
    fleet.decode[0].until_aborted().await;
}

#[tokio::test]
async fn a_prefill_that_gives_up_waiting_is_named_and_decode_is_aborted() {
    let fleet = Fleet::start_with(1, 1, |config| {
        let mut config = config.instant();
        config.timing.bootstrap_timeout = Duration::from_millis(300);
        config
    })
    .await;
    let gateway = fleet.gateway_with(&WATCHFUL).await;
    fleet.prefill[0].once(Action::NeverRendezvous);
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 500, "prefill");
    let leg = fleet.decode[0].legs_arrived(1).await.remove(0);
    fleet.decode[0].abort_arrived(&leg).await;
}

#[tokio::test]
async fn a_prefill_that_fails_fails_a_stream_before_its_head() {
    let (fleet, gateway) = one_pair().await;
    fleet.prefill[0].once(status(500));
    let answer = gateway.client.open(CHAT, &streamed("hi")).await.answer().await;
    assert_error(&answer, 500, "prefill");
}

#[tokio::test]
async fn a_prefill_that_dies_is_named_and_decode_is_aborted() {
    let (fleet, gateway) = one_pair().await;
    fleet.prefill[0].once(Action::DieBeforeHead);
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 502, "prefill");
    fleet.decode[0].until_aborted().await;
}

#[tokio::test]
async fn a_prefill_that_freezes_is_named_and_decode_is_aborted() {
    let (fleet, gateway) = one_pair().await;
    fleet.prefill[0].once(Action::Freeze { ms: None });
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 502, "prefill");
    let leg = fleet.decode[0].legs_arrived(1).await.remove(0);
    fleet.decode[0].abort_arrived(&leg).await;
    let outcome = ["outcome=\"prefill_silent\""];
    assert_eq!(gateway.metric("pd_router_leg_requests_total", &outcome).await, 1.0);
}

#[tokio::test]
async fn legs_that_never_meet_time_out_and_both_are_aborted() {
    let fleet = Fleet::start(1, 1).await;
    let flags = [&WATCHFUL[..], &["--prefill-timeout", "400ms"]].concat();
    let gateway = fleet.gateway_with(&flags).await;
    fleet.prefill[0].once(Action::NeverRendezvous);
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 504, "prefill");
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        engine.abort_arrived(&leg).await;
    }
}

#[tokio::test]
async fn a_decode_that_refuses_admission_is_named_and_prefill_is_aborted() {
    let (fleet, gateway) = one_pair().await;
    fleet.decode[0].once(status(503));
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 503, "decode");
    assert!(!answer.header("retry-after").is_empty());
    fleet.prefill[0].until_aborted().await;
}

#[tokio::test]
async fn a_decode_that_dies_is_named_and_prefill_is_aborted() {
    let (fleet, gateway) = one_pair().await;
    fleet.decode[0].once(Action::DieBeforeHead);
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 502, "decode");
    fleet.prefill[0].until_aborted().await;
}

#[tokio::test]
async fn a_stream_whose_first_event_is_an_error_is_that_error() {
    let (fleet, gateway) = one_pair().await;
    fleet.decode[0].once(Action::FirstEventError { message: "out of luck".into() });
    let answer = gateway.client.open(CHAT, &streamed("hi")).await.answer().await;
    assert_error(&answer, 500, "out of luck");
    assert!(answer.error_message().contains("decode"), "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json");
}

#[tokio::test]
async fn a_decode_that_dies_in_a_stream_ends_it_with_an_error_event() {
    let (fleet, gateway) = one_pair().await;
    fleet.decode[0].once(Action::DieMidStream { after: 3 });
    let stream = gateway.client.open(CHAT, &streamed("hi")).await;
    assert_eq!(stream.status, 200);
    let (events, end) = stream.events().await;
    assert_eq!(end, End::Clean, "the body must end as HTTP says");
    let errors: Vec<Value> = events
        .iter()
        .filter(|event| !event.is_done())
        .map(|event| event.json())
        .filter(|event| event["error"].is_object())
        .collect();
    assert_eq!(errors.len(), 1, "{events:?}");
    assert!(errors[0]["error"]["message"].as_str().is_some_and(|m| m.contains("decode")));
    assert!(events.len() > 2, "what had come before is kept: {events:?}");
    assert_eq!(fleet.decode[0].legs().len(), 1, "nothing is retried once the client is committed");
}

#[tokio::test]
async fn half_an_event_never_reaches_the_client() {
    let (fleet, gateway) = one_pair().await;
    fleet.decode[0].once(Action::DieMidEvent { after: 3 });
    let (events, end) = gateway.client.open(CHAT, &streamed("hi")).await.events().await;
    // Every event was JSON or [DONE], else the error's framing would be broken.
    assert!(events.iter().all(|event| event.is_done() || event.json().is_object()));
    assert_eq!(end, End::Clean);
}

/// Two decodes, the first of which retracts every request after this many tokens.
async fn retracting(after: usize) -> (Fleet, Gateway) {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].always(Action::Retract { after });
    (fleet, gateway)
}

#[tokio::test]
async fn a_request_that_decode_retracts_before_its_answer_is_retried() {
    for (after, body) in [(3, chat("hi")), (0, streamed("hi"))] {
        let (fleet, gateway) = retracting(after).await;
        for _ in 0..2 {
            let answer = gateway.client.post(CHAT, &body).await.expect_status(200);
            assert!(!answer.text().contains("retracted"), "{}", answer.text());
        }
        assert_eq!(fleet.decode[0].legs().len(), 1, "it is left to the others for a second");
        let retries = gateway.metric("pd_router_retries_total", &["reason=\"decode_error\""]).await;
        assert_eq!(retries, 1.0);
        fleet.idle().await;
    }
}

#[tokio::test]
async fn a_stream_that_decode_retracts_ends_with_an_error_event() {
    let (fleet, gateway) = retracting(3).await;
    let mut retracted = None;
    for _ in 0..2 {
        let (events, end) = gateway.client.open(CHAT, &streamed("hi")).await.events().await;
        assert_eq!(end, End::Clean);
        let (last, events) = events.split_last().expect("events");
        assert!(last.is_done(), "{last:?}");
        let errors: Vec<Value> = events.iter().map(|event| event.json()).collect();
        if let Some(error) = errors.iter().find(|event| event["error"].is_object()) {
            retracted = Some((error["error"].clone(), events.len()));
        }
    }
    let (error, events) = retracted.expect("the first decode was not chosen");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("answered 503")), "{error}");
    assert!(events > 3, "what had come before is kept: {events}");
    assert_eq!(fleet.decode[0].legs().len(), 1, "it is left to the others for a second");
    let health = gateway.fleet().await.to_string();
    assert!(!health.contains("failing"), "a full engine is not sick: {health}");
    fleet.idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_stops_decode() {
    let fleet = Fleet::start_with(1, 1, |config| config).await;
    let gateway = fleet.gateway().await;
    let mut body = streamed("hi");
    body["max_tokens"] = 50_000.into();
    body["ignore_eos"] = true.into();
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    drop(stream);
    let leg = fleet.decode[0].legs_arrived(1).await.remove(0);
    fleet.decode[0].abort_arrived(&leg).await;
    fleet.idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_stops_both_engines() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    fleet.prefill[0].once(Action::NeverRendezvous);
    let client = gateway.client;
    let waiting = tokio::spawn(async move { client.post(CHAT, &chat("hi")).await });
    for engine in fleet.engines() {
        engine.legs_arrived(1).await;
    }
    waiting.abort();
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        engine.abort_arrived(&leg).await;
    }
    fleet.idle().await;
}

#[tokio::test]
async fn a_retry_takes_another_worker_and_a_fresh_room() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].always(status(503));
    for _ in 0..6 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert!(!fleet.decode[0].legs().is_empty(), "the failing one was never tried");
    // The decodes' legs: prefill's of a failed attempt may be aborted before it is sent.
    let legs: Vec<_> = fleet.decode.iter().flat_map(|decode| decode.legs()).collect();
    assert!(legs.len() > 6, "nothing was retried");
    // A leg that a script answers has no parsed room.
    let room = |leg: &sglang_sim::Received| leg.json()["bootstrap_room"].as_u64();
    let mut distinct: Vec<Option<u64>> = legs.iter().map(room).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), legs.len(), "a room was used twice");
    let name = |leg: &sglang_sim::Received| leg.json()["rid"].to_string();
    let mut names: Vec<String> = legs.iter().map(name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), legs.len(), "a name was used twice");
}

#[tokio::test]
async fn a_stream_that_has_not_begun_is_retried_too() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].once(Action::DropBeforeHead);
    for _ in 0..4 {
        let stream = gateway.client.open(CHAT, &streamed("hi")).await;
        assert_eq!(stream.status, 200);
        let (events, end) = stream.events().await;
        assert!(end == End::Clean && events.last().is_some_and(|event| event.is_done()));
    }
}

#[tokio::test]
async fn attempts_are_bounded() {
    let fleet = Fleet::start(1, 4).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "3"]).await;
    for decode in &fleet.decode {
        decode.always(status(502));
    }
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 502, "decode");
    let tried: usize = fleet.decode.iter().map(|decode| decode.legs().len()).sum();
    assert_eq!(tried, 3);
}

#[tokio::test]
async fn a_request_that_an_engine_refuses_is_never_retried() {
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway().await;
    for decode in &fleet.decode {
        decode.always(status(422));
    }
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_error(&answer, 422, "the engine says no");
    let tried: usize = fleet.decode.iter().map(|decode| decode.legs().len()).sum();
    assert_eq!(tried, 1);
}

#[tokio::test]
async fn a_pod_that_refuses_connections_is_skipped() {
    let fleet = Fleet::start(1, 1).await;
    let gone = router_tests::loopback::Loopback::claim();
    for role in ["prefill", "decode"] {
        let name = format!("gone-{role}");
        fleet.manifests.put_pod(&router_tests::manifests::Pod::new(&name, role, gone.ip()));
    }
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..8 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        assert!(answer.took < SOON, "{:?}", answer.took);
    }
}

#[tokio::test]
async fn aborts_carry_the_engines_key() {
    let fleet = Fleet::start_with(1, 1, |config| sglang_sim::Config {
        admin_api_key: Some("secret".into()),
        ..config
    })
    .await;
    let folder = router_tests::folder::Folder::new("key");
    let file = folder.path().join("key");
    std::fs::write(&file, "secret\n").expect("the key's file");
    let file = file.to_str().expect("a path in UTF-8");
    let gateway = fleet.gateway_with(&["--engine-api-key-file", file]).await;
    let mut body = streamed("hi");
    (body["max_tokens"], body["ignore_eos"]) = (50_000.into(), true.into());
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    drop(stream);
    let leg = fleet.decode[0].legs_arrived(1).await.remove(0);
    fleet.decode[0].abort_arrived(&leg).await;
    assert!(!gateway.log().contains("secret"));
}

#[tokio::test]
async fn an_abort_that_overtakes_its_request_is_repeated() {
    for (pp_size, is_prefill_late) in [(1, true), (1, false), (2, true), (2, false)] {
        let fleet = Fleet::start_with(1, 1, |config| {
            let mut config = sglang_sim::Config { pp_size, ..config };
            // Only an abort ends a request.
            config.timing.disconnect_stream = Duration::from_secs(600);
            config.timing.disconnect_poll = Duration::from_secs(600);
            config
        })
        .await;
        let gateway = fleet.gateway().await;
        let (late, other) = match is_prefill_late {
            true => (&fleet.prefill[0], &fleet.decode[0]),
            false => (&fleet.decode[0], &fleet.prefill[0]),
        };
        late.once(Action::Late { ms: 100 });
        other.once(Action::HangHead);
        let client = gateway.client;
        let request = tokio::spawn(async move { client.open(CHAT, &streamed("hi")).await });
        let leg = late.legs_arrived(1).await.remove(0);
        request.abort();
        eventually("an abort finds the request", SOON, async || {
            late.aborts().iter().any(|abort| abort.matched == leg.rids).then_some(())
        })
        .await;
        late.idle().await;
    }
}
