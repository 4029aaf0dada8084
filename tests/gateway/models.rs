//! The model of a request: every endpoint that names one goes to an engine that serves it.

use http::Method;
use router_tests::Fleet;
use router_tests::fleet::Engine;
use router_tests::gateway::Gateway;
use serde_json::{Value, json};
use sglang_sim::{Config, Role};

use crate::{CHAT, chat};

const TRIES: usize = 8;

fn named(path: &'static str, served: &'static str) -> impl Fn(Config) -> Config {
    move |config| Config {
        model_path: path.into(),
        served_model_name: Some(served.into()),
        ..config.instant()
    }
}

/// Two ordinary servers of different models in one pool.
async fn two_models() -> Fleet {
    let mut fleet = Fleet::start_single(0).await;
    fleet.add(Role::Unified, named("/models/alpha", "alpha")).await;
    fleet.add(Role::Unified, named("/models/beta", "gpt:120b")).await;
    fleet
}

/// The paths of requests that arrived, without the gateway's own probes.
fn arrived(engine: &Engine, path: &str) -> usize {
    engine.received().iter().filter(|request| request.path() == path).count()
}

/// The body that each path takes, without a model.
fn side_bodies() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    vec![
        ("/tokenize", json!({"prompt": "hi"})),
        ("/v1/tokenize", json!({"prompt": "hi"})),
        ("/detokenize", json!({"tokens": [104, 105]})),
        ("/v1/detokenize", json!({"tokens": [104, 105]})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
        ("/v1/embeddings", json!({"input": "hi"})),
        // The simulator does not have these; where they arrive is what matters.
        ("/v1/rerank", json!({"query": "q", "documents": ["a"]})),
        ("/v1/score", json!({"query": "q", "items": ["a"]})),
        ("/v1/classify", json!({"input": "hi"})),
        ("/encode", json!({"text": "hi"})),
    ]
}

#[tokio::test]
async fn side_endpoints_go_to_an_engine_of_the_model() {
    let fleet = two_models().await;
    let gateway = fleet.gateway().await;
    for (path, body) in side_bodies() {
        for (model, index) in [("alpha", 0), ("gpt:120b", 1), ("gpt:120b:lora", 1)] {
            let before = arrived(&fleet.unified[index], path);
            for _ in 0..TRIES {
                let mut body = body.clone();
                body["model"] = model.into();
                let answer = gateway.client.post(path, &body).await;
                assert!(
                    answer.header("x-pd-router-reason").is_empty(),
                    "{path}: {}",
                    answer.text()
                );
            }
            assert_eq!(arrived(&fleet.unified[index], path), before + TRIES, "{path} {model}");
        }
        let total = arrived(&fleet.unified[0], path) + arrived(&fleet.unified[1], path);
        let mut unknown = body.clone();
        unknown["model"] = "other".into();
        let answer = gateway.client.post(path, &unknown).await.expect_status(404);
        assert_eq!(answer.header("x-pd-router-reason"), "model_not_found", "{path}");
        for missing in [json!(null), json!(5)] {
            let mut body = body.clone();
            body["model"] = missing;
            let answer = gateway.client.post(path, &body).await.expect_status(400);
            assert!(answer.error_message().contains("'model'"), "{path}: {}", answer.text());
        }
        gateway.client.post(path, &body).await.expect_status(400);
        let now = arrived(&fleet.unified[0], path) + arrived(&fleet.unified[1], path);
        assert_eq!(now, total, "{path}: a refused request reaches no engine");
    }
}

#[tokio::test]
async fn a_generating_request_without_a_model_is_refused_in_a_pool_of_several() {
    let fleet = two_models().await;
    let gateway = fleet.gateway().await;
    for model in [None, Some(json!(null)), Some(json!(5))] {
        let mut body = chat("hi");
        body.as_object_mut().expect("an object").remove("model");
        if let Some(model) = model {
            body["model"] = model;
        }
        let answer = gateway.client.post(CHAT, &body).await.expect_status(400);
        assert_eq!(answer.json()["error"]["param"], "model");
        assert_eq!(answer.header("x-should-retry"), "false");
    }
    let generate = json!({"text": "hi", "sampling_params": {"max_new_tokens": 2}});
    gateway.client.post("/generate", &generate).await.expect_status(400);
    let mut named = generate;
    named["model"] = "alpha".into();
    gateway.client.post("/generate", &named).await.expect_status(200);
    assert_eq!(fleet.unified[0].legs().len(), 1);
}

#[tokio::test]
async fn an_adapter_is_served_by_the_engines_of_its_base() {
    let fleet = two_models().await;
    let gateway = fleet.gateway().await;
    for (model, index) in [("alpha:my-lora", 0), ("gpt:120b:my-lora", 1)] {
        let before = fleet.unified[index].legs().len();
        for _ in 0..TRIES {
            let mut body = chat("hi");
            body["model"] = model.into();
            gateway.client.post(CHAT, &body).await.expect_status(200);
        }
        assert_eq!(fleet.unified[index].legs().len(), before + TRIES, "{model}");
    }
}

#[tokio::test]
async fn a_listed_model_is_retrieved_by_its_escaped_name() {
    let mut fleet = Fleet::start_single(0).await;
    fleet
        .add(Role::Unified, |config| Config { model_path: "/m/a".into(), ..config.instant() })
        .await;
    fleet
        .add(Role::Unified, |config| Config { model_path: "b:1".into(), ..config.instant() })
        .await;
    let gateway = fleet.gateway().await;
    for (path, name) in [
        ("/v1/models/%2Fm%2Fa", "/m/a"),
        ("/v1/models//m/a", "/m/a"),
        ("/v1/models/b%3A1", "b:1"),
        ("/v1/models/b:1", "b:1"),
    ] {
        for _ in 0..TRIES {
            let model = gateway.client.get(path).await.expect_status(200);
            assert_eq!(model.json()["id"], name, "{path}");
        }
    }
    let answer = gateway.client.get("/v1/models/c").await.expect_status(404);
    assert_eq!(answer.header("x-pd-router-reason"), "model_not_found");
}

async fn answers(gateway: &Gateway, model: &str) -> [u16; 3] {
    let mut body = chat("hi");
    body["model"] = model.into();
    let generated = gateway.client.post(CHAT, &body).await;
    let tokens = json!({"model": model, "prompt": "hi"});
    let tokens = gateway.client.post("/tokenize", &tokens).await;
    let path = format!("/v1/models/{}", model.replace('/', "%2F"));
    let found = gateway.client.get(&path).await;
    [generated, tokens, found].map(|answer| answer.status.as_u16())
}

#[tokio::test]
async fn a_pool_of_one_model_refuses_other_names_with_strict_models_only() {
    let fleet = Fleet::start(1, 1).await;
    let lenient = fleet.gateway().await;
    let strict = fleet.gateway_with(&["--strict-models"]).await;
    // An engine of SGLang checks the name of `/v1/models/NAME` itself.
    assert_eq!(answers(&lenient, "gpt-4o").await, [200, 200, 404]);
    assert_eq!(answers(&strict, "gpt-4o").await, [404, 404, 404]);
    assert_eq!(answers(&strict, "/models/Qwen3-32B").await, [200, 200, 200]);
    let unnamed = json!({"text": "hi", "sampling_params": {"max_new_tokens": 2}});
    strict.client.post("/generate", &unnamed).await.expect_status(200);
}

#[tokio::test]
async fn tokens_of_messages_are_counted_and_errors_have_anthropic_s_shape() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    const COUNT: &str = "/v1/messages/count_tokens";
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let answer = gateway.client.post(COUNT, &body).await.expect_status(200);
    assert!(answer.json()["input_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    let get = gateway.client.request(Method::GET, COUNT, "");
    let wrong = [
        gateway.client.post_bytes(COUNT, "{").await.expect_status(400),
        gateway.client.send(get).await.answer().await.expect_status(405),
        gateway.client.post("/v1/messages/batches", &body).await.expect_status(404),
    ];
    for answer in wrong {
        assert_eq!(answer.json()["type"], "error", "{}", answer.text());
    }
}

#[tokio::test]
async fn what_one_engine_serves_gets_no_engine_control() {
    let fleet = Fleet::start_single(1).await;
    let gateway = fleet.gateway().await;
    for (path, mut body) in side_bodies() {
        body["model"] = "m".into();
        let want = body.clone();
        for field in [
            "rid",
            "routed_dp_rank",
            "data_parallel_rank",
            "bootstrap_room",
            "http_worker_ipc",
            "encoder_urls",
            "num_items_assigned",
            "need_wait_for_mm_inputs",
            "lora_id",
            "received_time",
            "external_trace_header",
            "log_metrics",
            "return_bytes",
            "mm_hashes",
            "mm_content_hashes",
            "custom_labels",
            "positional_embed_overrides",
            "multi_item_delimiter_indices",
            "token_indices_to_pool",
        ] {
            body[field] = "client's".into();
        }
        if path == "/encode" {
            body["embed_overrides"] = json!([[0.5]]);
        }
        gateway.client.post(path, &body).await;
        let received = fleet.unified[0].received();
        let request = received.iter().find(|request| request.path() == path);
        assert_eq!(request.expect("it arrived").json(), want, "{path}");
    }
}
