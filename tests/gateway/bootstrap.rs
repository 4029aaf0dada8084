//! Bootstrap ports and roles: what the operator says, what engines say, and what follows where the two
//! contradict each other.

use std::time::Duration;

use router_tests::fleet::{Engine, SOON};
use router_tests::gateway::pair;
use router_tests::manifests::{POOL, pool};
use router_tests::{Fleet, Gateway, eventually};
use serde_json::Value;
use sglang_sim::{Config, Role};

use crate::{CHAT, chat};

const LABEL: &str = "alibabacloud.com/inference_backend: sglang";

/// The documents' pool whose policy names this bootstrap port, or none.
fn pool_with_port(port: Option<u16>) -> String {
    let fields = "      kvTransfer:\n        bootstrapPort: 34000\n";
    let port = port.map_or(String::new(), |port| fields.replace("34000", &port.to_string()));
    pool(POOL, LABEL).replace(fields, &port)
}

/// The problems of a code, once there are some.
async fn problems(gateway: &Gateway, code: &str) -> Vec<Value> {
    eventually(&format!("a problem {code}"), SOON, async || {
        let problems = gateway.fleet().await["problems"].take();
        let all = problems.as_array().cloned().unwrap_or_default();
        let found: Vec<Value> = all.into_iter().filter(|one| one["code"] == code).collect();
        (!found.is_empty()).then_some(found)
    })
    .await
}

/// A 503 at once, and its message.
async fn refused(gateway: &Gateway) -> String {
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(503);
    assert!(answer.took < SOON, "{:?}", answer.took);
    assert_eq!(answer.header("x-pd-router-reason"), "no_worker_ready");
    assert!(!answer.text().contains("127."), "an engine's address: {}", answer.text());
    answer.error_message()
}

#[tokio::test]
async fn each_engine_of_a_pod_has_its_own_bootstrap_port() {
    let mut fleet = Fleet::start(1, 1).await;
    let ip = fleet.prefill[0].address.ip();
    let config =
        Config { host: ip, port: 8010, bootstrap_port: 34010, ..Config::new(Role::Prefill) };
    let second = sglang_sim::Engine::start(config.instant()).await.expect("starting an engine");
    let decode_ip = fleet.decode[0].address.ip();
    let config = Config { host: decode_ip, port: 8010, ..Config::new(Role::Decode) };
    let _decode = sglang_sim::Engine::start(config.instant()).await.expect("starting an engine");
    let several = pool_with_port(Some(34000))
        .replacen("x-k8s.io/v1alpha2\nkind: InferencePool", "k8s.io/v1\nkind: InferencePool", 1)
        .replace("targetPortNumber: 8000", "targetPorts: [{number: 8000}, {number: 8010}]")
        .replace(
            &format!("selector:\n    {LABEL}"),
            &format!("selector: {{matchLabels: {{{LABEL}}}}}"),
        );
    fleet.manifests.put("pool.yaml", &several);
    fleet.manifests.put(
        "route.yaml",
        &router_tests::manifests::route("/", POOL)
            .replace("networking.x-k8s.io", "networking.k8s.io"),
    );
    let gateway = Gateway::start_with(&fleet.manifests, &["--policy", "round_robin"]).await;
    eventually("all engines are up", SOON, async || {
        (gateway.metric("pd_router_worker_up", &[]).await == 4.0).then_some(())
    })
    .await;
    for _ in 0..8 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        assert!(answer.took < SOON, "{:?}", answer.took);
    }
    let ports = |legs: Vec<sglang_sim::Received>| -> Vec<Value> {
        legs.iter().map(|leg| leg.json()["bootstrap_port"].clone()).collect()
    };
    let of_second = ports(second.received_on(CHAT));
    assert!(!of_second.is_empty() && of_second.iter().all(|port| *port == 34010), "{of_second:?}");
    let of_first = ports(fleet.prefill[0].legs());
    assert!(!of_first.is_empty() && of_first.iter().all(|port| *port == 34000), "{of_first:?}");
    let fleet_page = gateway.fleet().await;
    assert_eq!(fleet_page["problems"], serde_json::json!([]));
    // Engines of one pod have names of their own.
    let up = async |name: &str| gateway.metric("pd_router_worker_up", &[name]).await;
    assert_eq!(up("worker=\"default/prefill-0:8010\"").await, 1.0);
    assert_eq!(up("worker=\"default/prefill-0:8000\"").await, 1.0);
    second.kill().await;
    eventually("the dead engine is down", SOON, async || {
        (up("worker=\"default/prefill-0:8010\"").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(up("worker=\"default/prefill-0:8000\"").await, 1.0);
    fleet.prefill.clear();
}

#[tokio::test]
async fn a_wrong_bootstrap_port_is_a_problem_and_its_prefill_gets_no_requests() {
    let fleet = Fleet::start(1, 1).await;
    fleet.manifests.put("pool.yaml", &pool_with_port(Some(34999)));
    let gateway = fleet.gateway().await;
    let found = problems(&gateway, "BootstrapPortMismatch").await;
    let text = found[0].to_string();
    for part in ["34999", "34000", "default/prefill-0", "InferenceTrafficPolicy", "bootstrapPort"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let message = refused(&gateway).await;
    assert!(
        message.contains("pool default/qwen-inference-pool: 0 of 1 prefills ready"),
        "{message}"
    );
    assert!(message.contains("bootstrap server at port 34999 cannot be reached"), "{message}");
    assert!(fleet.engines().all(|engine| engine.legs().is_empty()));
    gateway.client.get("/health").await.expect_status(503);
    // Every line about a problem has its code, and a change of health names the server.
    let lines = |part: &str| gateway.log().lines().filter(|line| line.contains(part)).count();
    for part in ["\"code\":\"BootstrapPortMismatch\"", "its bootstrap server 127."] {
        eventually(part, SOON, async || (lines(part) > 0).then_some(())).await;
        assert_eq!(lines(part), 1, "{part}: {}", gateway.log());
    }
    fleet.manifests.put("pool.yaml", &pool_with_port(Some(34000)));
    eventually("the right port serves", SOON, async || {
        let answer = gateway.client.post(CHAT, &chat("hi")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(gateway.fleet().await["problems"], serde_json::json!([]));
}

#[tokio::test]
async fn a_pods_annotation_that_contradicts_its_engine_is_a_problem_of_the_pod() {
    let fleet = Fleet::start(2, 1).await;
    let mut pod = fleet.prefill[1].pod.clone();
    pod.annotations.push(("sglang.ai/bootstrap-port".into(), "34777".into()));
    fleet.manifests.put_pod(&pod);
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    let found = problems(&gateway, "BootstrapPortMismatch").await;
    assert_eq!(found[0]["object"], "Pod default/prefill-1");
    let reason = found[0]["reason"].to_string();
    assert!(reason.contains("34777") && reason.contains("34000"), "{reason}");
    for _ in 0..4 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        assert!(pair(&answer).0.ends_with("prefill-0"));
    }
}

#[tokio::test]
async fn without_a_configured_port_the_engines_own_is_used() {
    let own_port = |config: Config| Config { bootstrap_port: 34123, ..config.instant() };
    let fleet = Fleet::start_with(1, 1, own_port).await;
    fleet.manifests.put("pool.yaml", &pool_with_port(None));
    let gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    assert_eq!(fleet.prefill[0].legs()[0].json()["bootstrap_port"], 34123);

    let url = |engine: &Engine| format!("http://{}:8000", engine.address.ip());
    let (prefill, decode) = (url(&fleet.prefill[0]), url(&fleet.decode[0]));
    let words = ["--pd-disaggregation", "--prefill", &prefill, "--decode", &decode];
    let mut source: Vec<_> = words.iter().map(Into::into).collect();
    source.extend(["--port".into(), "30000".into()]);
    let flags = Gateway::spawn(&source, 30000, &[]);
    flags.wait_until_ready().await;
    eventually("the first answer", SOON, async || {
        let answer = flags.client.post(CHAT, &chat("hi")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(fleet.prefill[0].legs()[1].json()["bootstrap_port"], 34123);
}

#[tokio::test]
async fn an_engine_that_restarts_with_another_bootstrap_port_is_found_there() {
    let own_port = |port| move |config: Config| Config { bootstrap_port: port, ..config.instant() };
    let mut fleet = Fleet::start_with(1, 1, own_port(34123)).await;
    fleet.manifests.put("pool.yaml", &pool_with_port(None));
    let gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let old = fleet.prefill.remove(0);
    old.sim.kill().await;
    let config = own_port(34124)(old.sim.config().clone());
    let new = sglang_sim::Engine::start(config).await.expect("starting an engine");
    eventually("the new port serves", Duration::from_secs(10), async || {
        let answer = gateway.client.post(CHAT, &chat("hi")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    let legs = new.received_on(CHAT);
    assert_eq!(legs.last().expect("a request").json()["bootstrap_port"], 34124);
}

#[tokio::test]
async fn engines_whose_roles_are_exchanged_get_no_requests_and_are_named() {
    let fleet = Fleet::start(1, 1).await;
    for (engine, role) in fleet.engines().zip(["decode", "prefill"]) {
        let mut pod = engine.pod.clone();
        pod.role = role.into();
        fleet.manifests.put_pod(&pod);
    }
    let gateway = fleet.gateway().await;
    let message = refused(&gateway).await;
    assert!(message.contains("its role is decode, and the engine runs as prefill"), "{message}");
    assert!(fleet.engines().all(|engine| engine.legs().is_empty()));
    let excluded = gateway.fleet().await["pools"][0]["excluded"].to_string();
    assert!(excluded.contains("default/prefill-0") && excluded.contains("default/decode-0"));
}

#[tokio::test]
async fn an_ordinary_server_is_no_decode() {
    let mut fleet = Fleet::start(1, 1).await;
    fleet.add(Role::Unified, Config::instant).await;
    let mut pod = fleet.unified[0].pod.clone();
    pod.role = "decode".into();
    fleet.manifests.put_pod(&pod);
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..4 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert!(fleet.unified[0].legs().is_empty());
    let excluded = gateway.fleet().await["pools"][0]["excluded"].to_string();
    assert!(excluded.contains("its role is decode, and the engine runs as an ordinary server"));
}

#[tokio::test]
async fn a_forgotten_policy_is_named() {
    let fleet = Fleet::start(1, 1).await;
    let documents = pool(POOL, LABEL);
    let (only_pool, _) = documents.split_once("---").expect("a pool and a policy");
    fleet.manifests.put("pool.yaml", only_pool);
    let gateway = fleet.gateway().await;
    let message = refused(&gateway).await;
    assert!(message.contains("0 of 2 workers ready"), "{message}");
    assert!(
        message.contains("no InferenceTrafficPolicy with profile.pd names the pool"),
        "{message}"
    );
    let found = problems(&gateway, "PolicyMissing").await;
    assert_eq!(found[0]["object"], "InferencePool default/qwen-inference-pool");
}
