//! Pairs that fit: one model, one page size, one kind of KV cache.

use router_tests::Fleet;
use router_tests::gateway::pair;
use serde_json::{Value, json};
use sglang_sim::{Config, Role};

use crate::{CHAT, chat};

fn model(path: &'static str) -> impl Fn(Config) -> Config {
    move |config| Config { model_path: path.into(), ..config.instant() }
}

fn ask_for(model: &str) -> Value {
    let mut body = chat("hi");
    body["model"] = model.into();
    body
}

#[tokio::test]
async fn the_model_of_a_request_picks_its_pair() {
    let mut fleet = Fleet::start_with(1, 1, model("/models/a")).await;
    fleet.add(Role::Prefill, model("/models/b")).await;
    fleet.add(Role::Decode, model("/models/b")).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..4 {
        for (name, index) in [("/models/a", 0), ("/models/b", 1)] {
            let answer = gateway.client.post(CHAT, &ask_for(name)).await.expect_status(200);
            let (prefill, decode) = pair(&answer);
            assert!(prefill.ends_with(&format!("prefill-{index}")), "{name}: {prefill}");
            assert!(decode.ends_with(&format!("decode-{index}")), "{name}: {decode}");
            assert_eq!(answer.json()["model"], name);
        }
    }
    let answer = gateway.client.post(CHAT, &ask_for("/models/c")).await.expect_status(404);
    assert_eq!(answer.json()["error"]["param"], "model");
}

#[tokio::test]
async fn engines_whose_kv_differs_are_never_paired_and_are_named() {
    let mut fleet = Fleet::start(1, 1).await;
    fleet.add(Role::Prefill, |config| Config { page_size: 64, ..config.instant() }).await;
    let gateway = fleet.gateway_with(&["--policy", "round_robin"]).await;
    for _ in 0..6 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        assert!(pair(&answer).0.ends_with("prefill-0"));
    }
    assert!(fleet.prefill[1].legs().is_empty());
    let pools = gateway.fleet().await["pools"].clone();
    assert!(pools[0]["excluded"].to_string().contains("prefill-1"), "{pools}");
}

#[tokio::test]
async fn only_the_first_node_of_an_engine_is_a_worker() {
    let fleet = Fleet::start(1, 1).await;
    let mut second_node = fleet.decode[0].pod.clone();
    second_node.name = "decode-0-1".into();
    second_node.ip = "127.0.0.2".parse().expect("an address");
    second_node.labels.push(("leaderworkerset.sigs.k8s.io/worker-index".into(), "1".into()));
    fleet.manifests.put_pod(&second_node);
    let gateway = fleet.gateway_with(&["--policy", "round_robin", "--max-attempts", "1"]).await;
    for _ in 0..6 {
        let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        assert!(pair(&answer).1.ends_with("decode-0"));
    }
}

#[tokio::test]
async fn a_pods_own_bootstrap_port_beats_the_policys() {
    let fleet = Fleet::start(1, 1).await;
    let wrong = router_tests::manifests::pool(
        router_tests::manifests::POOL,
        "alibabacloud.com/inference_backend: sglang",
    )
    .replace("bootstrapPort: 34000", "bootstrapPort: 34999");
    fleet.manifests.put("pool.yaml", &wrong);
    let mut pod = fleet.prefill[0].pod.clone();
    pod.annotations.push(("sglang.ai/bootstrap-port".into(), "34000".into()));
    fleet.manifests.put_pod(&pod);
    let gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    assert_eq!(fleet.decode[0].legs()[0].json()["bootstrap_port"], json!(34000));
}
