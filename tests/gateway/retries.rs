//! Retries stop where they cannot help, and what fails is left for longer each time.

use std::time::{Duration, Instant};

use router_tests::fleet::SOON;
use router_tests::{Fleet, eventually};
use sglang_sim::Action;

use crate::{CHAT, chat};

fn status(status: u16) -> Action {
    Action::Status { status, body: r#"{"message":"the engine says no"}"#.into() }
}

fn legs(engines: &[router_tests::fleet::Engine]) -> usize {
    engines.iter().map(|engine| engine.legs().len()).sum()
}

#[tokio::test]
async fn retries_do_not_multiply_the_load_of_decodes_that_are_all_full() {
    let fleet = Fleet::start(2, 4).await;
    let gateway = fleet.gateway().await;
    for decode in &fleet.decode {
        decode.always(status(503));
    }
    for _ in 0..30 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(503);
    }
    let (prefill, decode) = (legs(&fleet.prefill), legs(&fleet.decode));
    assert!((30..=39).contains(&decode), "{decode} decode legs for 30 requests");
    assert!(prefill <= 39, "{prefill} prefill legs for 30 requests");
    for decode in &fleet.decode {
        decode.heal();
    }
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
}

#[tokio::test]
async fn a_decode_that_is_full_is_left_to_the_others_for_a_second() {
    let fleet = Fleet::start(1, 4).await;
    let gateway = fleet.gateway().await;
    fleet.decode[0].always(status(503));
    let began = Instant::now();
    for _ in 0..60 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let tried = fleet.decode[0].legs().len();
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("a short test");
    assert!(tried <= 2 + seconds, "{tried} of 60 requests went to the full decode first");
}

#[tokio::test]
async fn a_decode_that_answers_500_is_left_for_longer_each_time() {
    let fleet = Fleet::start(1, 2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    fleet.decode[0].always(status(500));
    let began = Instant::now();
    // The time outs are two and four seconds: within seven, five errors open the breaker, and two
    // requests try the engine again.
    while began.elapsed() < Duration::from_secs(7) {
        gateway.client.post(CHAT, &chat("hi")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let tried = fleet.decode[0].legs().len();
    assert!((6..=7).contains(&tried), "{tried} requests went to the failing decode");
}

#[tokio::test]
async fn a_request_waits_while_the_only_decode_is_replaced() {
    let mut fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    fleet.manifests.remove_pod("decode-0");
    eventually("the pod is gone", SOON, async || {
        (!gateway.fleet().await.to_string().contains("decode-0")).then_some(())
    })
    .await;
    let client = router_tests::Client::new(gateway.client.address);
    let waiting = tokio::spawn(async move { client.post(CHAT, &chat("hi")).await });
    eventually("a request waits", SOON, async || {
        (gateway.metric("pd_router_requests_queued", &[]).await == 1.0).then_some(())
    })
    .await;
    fleet.add(sglang_sim::Role::Decode, sglang_sim::Config::instant).await;
    waiting.await.expect("no panic").expect_status(200);
}

#[tokio::test]
async fn a_forwarded_request_waits_while_the_only_engine_is_replaced() {
    let mut fleet = Fleet::start_single(1).await;
    let gateway = fleet.gateway().await;
    fleet.manifests.remove_pod("unified-0");
    eventually("the pod is gone", SOON, async || {
        (!gateway.fleet().await.to_string().contains("unified-0")).then_some(())
    })
    .await;
    let client = router_tests::Client::new(gateway.client.address);
    let ask = |path: &'static str| async move {
        match path {
            "/tokenize" => client.post(path, &serde_json::json!({"prompt": "hi"})).await,
            _ => client.get(path).await,
        }
    };
    let paths = ["/tokenize", "/model_info", "/v1/models/%2Fmodels%2FQwen3-32B"];
    let mut waiting: Vec<_> =
        paths.into_iter().map(|path| (path, tokio::spawn(ask(path)))).collect();
    let refused = gateway.client.get("/v1/models").await;
    assert_eq!(refused.status, 503, "what asks all engines does not wait");
    assert!(waiting.iter().all(|(_, request)| !request.is_finished()));
    fleet.add(sglang_sim::Role::Unified, sglang_sim::Config::instant).await;
    for (path, request) in &mut waiting {
        let answer = request.await.expect("no panic");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_pool_without_engines_refuses_after_the_queue_timeout_only_if_it_had_some() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--queue-timeout", "1s"]).await;
    fleet.manifests.put("empty.yaml", &router_tests::manifests::pool("empty", "app: none"));
    fleet
        .manifests
        .put("empty-route.yaml", &router_tests::manifests::route("/v1/messages", "empty"));
    fleet.manifests.remove_pod("decode-0");
    eventually("the files are read", SOON, async || {
        let text = gateway.fleet().await.to_string();
        (text.contains("default/empty") && !text.contains("decode-0")).then_some(())
    })
    .await;
    let had = gateway.client.post(CHAT, &chat("hi")).await.expect_status(503);
    assert_eq!(had.header("x-pd-router-reason"), "no_worker_ready");
    assert!(had.took >= Duration::from_secs(1), "{:?}", had.took);
    let forwarded = gateway.client.get("/model_info").await.expect_status(200);
    assert!(forwarded.took < Duration::from_secs(1), "prefill serves it: {:?}", forwarded.took);
    let never = gateway.client.post("/v1/messages", &chat("hi")).await.expect_status(503);
    assert_eq!(never.header("x-pd-router-reason"), "no_worker_ready");
    assert!(never.took < Duration::from_secs(1), "{:?}", never.took);
}
