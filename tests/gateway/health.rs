//! Health: what probes follow, what `/health` says, and what is logged of a change.

use std::time::Duration;

use router_tests::fleet::{Engine, SOON};
use router_tests::{Fleet, Gateway, eventually};
use serde_json::{Value, json};
use sglang_sim::{Action, Config, Role, Script};

use crate::forwarding::service;
use crate::{CHAT, chat};

/// A change of a manifest takes effect within this, on a busy machine too.
const EFFECT: Duration = Duration::from_secs(3);

/// The value of a metric, once it is `wanted`.
async fn metric_becomes(gateway: &Gateway, name: &str, label: &str, wanted: f64) {
    eventually(&format!("{name} {label} is {wanted}"), EFFECT, async || {
        (gateway.metric(name, &[label]).await == wanted).then_some(())
    })
    .await;
}

/// The lines of the log with this message and worker or pool, parsed.
fn logged(gateway: &Gateway, message: &str, about: &str) -> Vec<Value> {
    let log = gateway.log();
    let lines = log.lines().filter(|line| line.contains(message) && line.contains(about));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn a_pod_that_moves_is_probed_polled_and_used_at_its_new_address() {
    let fleet = Fleet::start(1, 2).await;
    let flags = ["--policy", "round_robin", "--probe-interval", "100ms"];
    let polled = ["--engine-load-interval", "100ms"];
    let gateway = fleet.gateway_with(&[&flags[..], &polled[..]].concat()).await;
    let label = "worker=\"default/decode-1\"";
    metric_becomes(&gateway, "pd_router_worker_up", label, 1.0).await;

    // The UID stays: a pod gets a new sandbox when its node restarts.
    let moved = Engine::start("moved", Role::Decode, |config| Config {
        max_running_requests: 77,
        ..config.instant()
    })
    .await;
    fleet.decode[1].sim.kill().await;
    let mut pod = fleet.decode[1].pod.clone();
    pod.ip = moved.address.ip();
    fleet.manifests.put_pod(&pod);
    let new_info = async || {
        let fleet = gateway.fleet().await;
        let members = fleet["pools"][0]["members"].as_array().cloned().unwrap_or_default();
        members.into_iter().find(|member| {
            member["worker"]["address"] == format!("{}:8000", pod.ip)
                && member["worker"]["health"] == "up"
                && member["engine_info"]["max_running_requests"] == 77
        })
    };
    eventually("the new engine is up and known", EFFECT, new_info).await;
    metric_becomes(&gateway, "pd_router_worker_up", label, 1.0).await;
    eventually("it is polled", EFFECT, async || {
        let polls = moved.received();
        polls.iter().any(|request| request.path().contains("load")).then_some(())
    })
    .await;
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert_eq!(moved.legs().len(), 2, "round robin gives it its share");
    moved.sim.kill().await;
    metric_becomes(&gateway, "pd_router_worker_up", label, 0.0).await;
}

#[tokio::test]
async fn health_says_what_requests_find() {
    let fleet = Fleet::start(1, 1).await;
    let flags = ["--max-attempts", "1", "--probe-interval", "100ms"];
    let gateway = fleet.gateway_with(&flags).await;
    let can_serve = "pd_router_pool_can_serve";
    gateway.client.get("/health").await.expect_status(200);
    metric_becomes(&gateway, can_serve, "pool=\"default/qwen-inference-pool\"", 1.0).await;
    // A client whose requests fail opens the breaker of the only decode, which others still get.
    let error = Action::Status { status: 500, body: r#"{"message":"no"}"#.into() };
    fleet.decode[0].always(error);
    eventually("the breaker is open", SOON, async || {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(500);
        gateway.fleet().await.to_string().contains("\"failing\"").then_some(())
    })
    .await;
    gateway.client.get("/health").await.expect_status(200);
    fleet.decode[0].heal();
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    fleet.decode[0].sim.kill().await;
    metric_becomes(&gateway, can_serve, "", 0.0).await;
    gateway.client.get("/health").await.expect_status(503);
}

#[tokio::test]
async fn every_change_of_health_is_logged_once_with_its_reason() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    let changes = || logged(&gateway, "worker health changed", "default/decode-0");
    let pool = |message: &str| logged(&gateway, message, "default/qwen-inference-pool");
    // The gateway is ready a moment before its log has the line.
    eventually("the first change is logged", SOON, async || changes().first().cloned()).await;
    fleet.decode[0].sim.kill().await;
    // The request notices it before a probe does.
    let answer = gateway.client.post(CHAT, &chat("hi")).await;
    assert_ne!(answer.status, 200);
    let down = eventually("the change is logged", SOON, async || changes().get(1).cloned()).await;
    assert_eq!(down["level"], "WARN", "{down}");
    assert_eq!((&down["before"], &down["after"]), (&"Up".into(), &"Down".into()), "{down}");
    assert!(down["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{down}");
    assert!(down["lasted_ms"].is_u64(), "{down}");
    eventually("the pool is logged", SOON, async || {
        pool("pool cannot serve requests").first().cloned()
    })
    .await;
    fleet.decode[0].sim.restart().await.expect("restarting an engine");
    let up = eventually("it is back", SOON, async || changes().get(2).cloned()).await;
    assert_eq!((&up["level"], &up["after"]), (&"INFO".into(), &"Up".into()), "{up}");
    eventually("the pool is logged", SOON, async || {
        pool("pool can serve requests again").first().cloned()
    })
    .await;
    assert_eq!((changes().len(), pool("pool cannot").len()), (3, 1), "{}", gateway.log());
}

#[tokio::test]
async fn a_503_says_which_roles_are_ready() {
    let fleet = Fleet::start(2, 0).await;
    let gateway = fleet.gateway().await;
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(503);
    let message = answer.error_message();
    let counts = "pool default/qwen-inference-pool: 2 of 2 prefills ready, 0 of 0 decodes ready (";
    assert!(message.starts_with(counts), "{message}");
    assert!(message.contains("selector alibabacloud.com/inference_backend=sglang"), "{message}");
    assert!(message.contains("role label rolebasedgroup.workloads.x-k8s.io/role"), "{message}");
    let pool = || logged(&gateway, "pool cannot serve requests", "0 of 0 decodes");
    eventually("the pool is logged", SOON, async || pool().first().cloned()).await;
    assert_eq!(pool().len(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn changes_of_a_services_endpoint_are_logged_like_those_of_an_engine() {
    let fleet = Fleet::start_single(1).await;
    let plain = Engine::start("plain", Role::Unified, Config::instant).await;
    service(&fleet, &[plain.address.ip()]);
    let gateway = fleet.gateway().await;
    let ask = async || gateway.client.post("/v1/embeddings", &json!({"input": "hi"})).await;
    plain.sim.kill().await;
    ask().await.expect_status(502);
    let about = format!("\"address\":\"{}", plain.address.ip());
    let changes = || logged(&gateway, "worker health changed", &about);
    let left = eventually("it is logged", SOON, async || changes().first().cloned()).await;
    assert_eq!((&left["level"], &left["after"]), (&"WARN".into(), &"Failing".into()), "{left}");
    plain.sim.restart().await.expect("restarting an engine");
    let tried = eventually("its time out passes", 2 * EFFECT, async || {
        ask().await;
        changes().get(1).cloned()
    })
    .await;
    assert_eq!(tried["after"], "HalfOpen", "{tried}");
    assert_eq!(tried["reason"], "its time out has passed", "{tried}");
    assert!(tried["lasted_ms"].as_u64().is_some_and(|ms| (1_500..10_000).contains(&ms)), "{tried}");
}

#[tokio::test]
async fn an_engine_whose_load_cannot_be_read_once_is_polled_on() {
    let fleet = Fleet::start(1, 1).await;
    let _gateway = fleet.gateway_with(&["--engine-load-interval", "300ms"]).await;
    let polls = || {
        let received = fleet.decode[0].received();
        received.iter().filter(|request| request.path() == "/v1/loads").count()
    };
    eventually("it is polled", EFFECT, async || (polls() > 0).then_some(())).await;
    let error = Action::Status { status: 500, body: "no".into() };
    fleet.decode[0].script(Script::once(error).on("/v1/loads"));
    let before = polls();
    // The failed poll, the search for an endpoint, and the next poll.
    eventually("it is polled on", SOON, async || (polls() >= before + 3).then_some(())).await;
}
