//! One decode of four is sick, in a closed loop: how many requests it gets, and how many fail.

use std::time::{Duration, Instant};

use router_tests::{Fleet, Gateway, eventually};
use serde_json::json;
use sglang_sim::{Action, Script};

use crate::{CHAT, chat};

const CLIENTS: usize = 4;
/// Time that an answer takes at a healthy pair.
const SERVICE: Duration = Duration::from_millis(120);
/// Requests of a run. A client that is refused at once asks again at once.
const REQUESTS: usize = 240;
/// Ejected for good in a run of a few seconds: it is tried again after 2, 4, 8 s.
const FLAGS: [&str; 4] = ["--probe-interval", "100ms", "--probe-timeout", "500ms"];

fn status(status: u16) -> Action {
    let body = r#"{"object":"error","message":"the engine says no","type":"BadRequest"}"#;
    Action::Status { status, body: body.into() }
}

async fn fleet() -> Fleet {
    Fleet::start_with(4, 4, |config| {
        let mut config = config.instant();
        config.inter_token = SERVICE / 4;
        config
    })
    .await
}

/// What became of a run.
#[derive(Debug)]
struct Run {
    requests: usize,
    failed: usize,
    /// Requests that the sick decode got.
    sick: usize,
}

impl Run {
    fn share(&self) -> f64 {
        self.sick as f64 / self.requests as f64
    }
}

/// A closed loop: each client sends its next request when it has the answer to the last.
async fn closed_loop(fleet: &Fleet, gateway: &Gateway, requests: usize) -> Run {
    let before = fleet.decode[0].legs().len();
    let client = gateway.client;
    let clients = (0..CLIENTS).map(|_| {
        tokio::spawn(async move {
            let mut failed = 0;
            for _ in 0..requests / CLIENTS {
                let mut body = chat("hi");
                body["max_tokens"] = 4.into();
                failed += usize::from(client.post(CHAT, &body).await.status != 200);
            }
            failed
        })
    });
    let mut failed = 0;
    for client in clients.collect::<Vec<_>>() {
        failed += client.await.expect("a client");
    }
    let sick = fleet.decode[0].legs().len() - before;
    let run = Run { requests: requests / CLIENTS * CLIENTS, failed, sick };
    println!("{run:?}: {:.1} % at the sick decode", 100.0 * run.share());
    run
}

async fn health_of_decodes(gateway: &Gateway) -> Vec<String> {
    let fleet = gateway.fleet().await;
    let members = fleet["pools"][0]["members"].as_array().cloned().unwrap_or_default();
    let decodes = members.iter().filter(|member| member["role"] == "decode");
    decodes.map(|member| member["worker"]["health"].as_str().unwrap_or_default().into()).collect()
}

/// The sick decode answers at once, with this status.
async fn refuses_at_once(answer: u16, policy: &str) {
    let fleet = fleet().await;
    let gateway = fleet.gateway_with(&[&FLAGS[..], &["--policy", policy]].concat()).await;
    fleet.decode[0].always(status(answer));
    let run = closed_loop(&fleet, &gateway, REQUESTS).await;
    assert!(run.sick > 0, "it was never chosen: {run:?}");
    assert!(run.share() < 0.10, "{run:?}");
    assert!(run.failed <= 5, "{run:?}");
}

#[tokio::test]
async fn a_decode_that_answers_400_attracts_nothing() {
    refuses_at_once(400, "least_load").await;
}

#[tokio::test]
async fn a_decode_that_answers_400_attracts_nothing_with_predictions() {
    refuses_at_once(400, "predicted").await;
}

#[tokio::test]
async fn a_decode_that_answers_500_attracts_nothing() {
    refuses_at_once(500, "least_load").await;
}

#[tokio::test]
async fn a_decode_that_answers_500_attracts_nothing_with_predictions() {
    refuses_at_once(500, "predicted").await;
}

#[tokio::test]
async fn a_silent_decode_is_charged_for_its_timeouts() {
    let fleet = fleet().await;
    let timeouts = ["--prefill-timeout", "1s", "--first-byte-timeout", "1s"];
    let gateway = fleet.gateway_with(&[&FLAGS[..], &timeouts].concat()).await;
    // HTTP and probes go on; requests hang.
    fleet.decode[0].always(Action::HangHead);
    let run = closed_loop(&fleet, &gateway, 2 * REQUESTS).await;
    assert!(run.sick > 0, "it was never chosen: {run:?}");
    // Three until it is ejected, those that it has then, and one after 2, 4 and 8 s.
    assert!(run.failed <= 12, "{run:?}");
    let health = health_of_decodes(&gateway).await;
    assert_ne!(health[0], "up", "{health:?}");
    assert!(health[1..].iter().all(|health| health == "up"), "{health:?}");
}

#[tokio::test]
async fn a_request_that_every_engine_refuses_charges_none() {
    let fleet = fleet().await;
    let gateway = fleet.gateway_with(&FLAGS).await;
    fleet.engines().for_each(|engine| engine.always(status(400)));
    let run = closed_loop(&fleet, &gateway, REQUESTS).await;
    assert_eq!(run.failed, run.requests);
    let health = health_of_decodes(&gateway).await;
    assert!(health.iter().all(|health| health == "up"), "{health:?}");
    fleet.engines().for_each(router_tests::fleet::Engine::heal);
    // Nothing is left of it: the next requests are spread as if nothing had been.
    let run = closed_loop(&fleet, &gateway, REQUESTS).await;
    assert_eq!(run.failed, 0, "{run:?}");
    assert!((0.10..0.45).contains(&run.share()), "{run:?}");
}

#[tokio::test]
async fn forwarded_requests_count_if_they_succeed_too() {
    const PATH: &str = "/tokenize";
    let fleet = Fleet::start_single(2).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    // The other engine needs ten before it is compared with.
    for _ in 0..20 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    let body = json!({"prompt": "hi"});
    let forward = || gateway.client.post(PATH, &body);
    for _ in 0..100 {
        forward().await.expect_status(200);
    }
    fleet.unified[0].script(Script::always(Action::DropBeforeHead).on(PATH));
    let mut failed = 0;
    while failed < 7 {
        failed += usize::from(forward().await.status != 200);
    }
    assert!(!gateway.log().contains("\"after\":\"Failing\""), "{}", gateway.log());
}

#[tokio::test]
async fn an_ejected_decode_comes_back_with_one_request() {
    let fleet = fleet().await;
    let gateway = fleet.gateway_with(&[&FLAGS[..], &["--policy", "least_load"]].concat()).await;
    fleet.decode[0].always(status(400));
    closed_loop(&fleet, &gateway, REQUESTS).await;
    let is = async |wanted: &str| (health_of_decodes(&gateway).await[0] == wanted).then_some(());
    fleet.decode[0].heal();
    let limit = Duration::from_secs(20);
    eventually("its time out passes", limit, async || is("half-open").await).await;
    let before = Instant::now();
    let run = closed_loop(&fleet, &gateway, 4 * CLIENTS).await;
    assert_eq!(run.failed, 0, "{run:?}");
    assert!(run.sick > 0, "{run:?}");
    is("up").await.expect("it is up after its first answer");
    assert!(before.elapsed() < limit, "{:?}", before.elapsed());
}
