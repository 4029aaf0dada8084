//! What an engine reports about itself, by role and version, and its DP ranks.

mod pair;

use pair::*;
use serde_json::json;
use sglang_sim::{Config, Engine, Role, Version};

async fn status(engine: &Engine, path: &str) -> u16 {
    get(engine, path).await.status.as_u16()
}

#[tokio::test]
async fn each_version_has_its_own_endpoints() {
    let old = start(config(Role::Decode, Version::V0_4_10)).await;
    let new = start(config(Role::Decode, Version::V0_5)).await;
    for (path, on_old, on_new) in [
        ("/ready", 404, 200),
        ("/v1/loads", 404, 200),
        ("/server_info", 404, 200),
        ("/model_info", 404, 200),
        ("/get_server_info", 200, 200),
        ("/get_model_info", 200, 200),
        ("/get_load", 200, 404),
        ("/v1/models", 200, 200),
        ("/metrics", 200, 200),
        ("/health", 200, 200),
        ("/health_generate", 200, 200),
        ("/flush_cache", 200, 200),
    ] {
        assert_eq!(
            (status(&old, path).await, status(&new, path).await),
            (on_old, on_new),
            "{path}"
        );
    }
    let text = json!({"prompt": "some text 中文"});
    assert_eq!(post(&old, "/tokenize", &text).await.status, 404);
    let tokens = post(&new, "/tokenize", &text).await.json();
    assert_eq!(
        tokens["count"].as_u64().unwrap(),
        tokens["tokens"].as_array().unwrap().len() as u64
    );
    let back = post(&new, "/detokenize", &json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back.json()["text"], "some text 中文");
}

#[tokio::test]
async fn server_info_reports_the_role_and_the_values_that_must_match() {
    let prefill = start(Config {
        page_size: 64,
        kv_cache_dtype: "fp8_e5m2".into(),
        served_model_name: Some("qwen".into()),
        max_total_tokens: 1234,
        ..config(Role::Prefill, Version::V0_5)
    })
    .await;
    let info = get(&prefill, "/server_info").await.json();
    assert_eq!(info["disaggregation_mode"], "prefill");
    let port = prefill.bootstrap_address().unwrap().port();
    assert_eq!(info["disaggregation_bootstrap_port"], port);
    assert_eq!((&info["page_size"], &info["kv_cache_dtype"]), (&json!(64), &json!("fp8_e5m2")));
    assert_eq!(info["max_total_num_tokens"], 1234);
    assert_eq!(info["internal_states"].as_array().unwrap().len(), 1);
    let models = get(&prefill, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "qwen");
    assert_eq!(status(&prefill, "/v1/models/qwen").await, 200);
    assert_eq!(status(&prefill, "/v1/models/other").await, 404);
}

#[tokio::test]
async fn the_registry_requires_the_parameters_of_its_version() {
    let engines = [Version::V0_4_10, Version::V0_5].map(|version| config(Role::Prefill, version));
    let [old, new] = engines.map(start);
    let (engine_old, engine_new) = (old.await, new.await);
    let (old, new) =
        (engine_old.bootstrap_address().unwrap(), engine_new.bootstrap_address().unwrap());
    let old_query = "/route?engine_rank=-1&target_dp_group=-1";
    let new_query =
        "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
    for (address, query, status) in
        [(old, old_query, 200), (old, new_query, 400), (new, new_query, 200), (new, old_query, 400)]
    {
        assert_eq!(get_at(address, query).await.status.as_u16(), status, "{query}");
    }
    assert_eq!(
        get_at(old, old_query).await.json(),
        json!({"prefill_tp_size": 1, "prefill_dp_size": 1})
    );
    let info = get_at(new, new_query).await.json();
    assert_eq!((&info["dp_size"], &info["follow_bootstrap_room"]), (&json!(1), &json!(true)));
    let rank = "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0";
    assert_eq!(get_at(new, rank).await.json()["rank_ip"], "127.0.0.1");
    let missing_rank =
        "/route?prefill_dp_rank=5&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0";
    assert_eq!(get_at(new, missing_rank).await.status, 404);
}

#[tokio::test]
async fn the_registry_stores_ranks_of_rooms() {
    let prefill = start(config(Role::Prefill, Version::V0_5)).await;
    let bootstrap = prefill.bootstrap_address().unwrap();
    let body = json!({"bootstrap_room": 9, "dp_rank": 3});
    let registered = read(send(bootstrap, "/register_dp_rank", &body).await.unwrap()).await;
    assert_eq!(registered.text(), "OK");
    let rooms = json!({"bootstrap_rooms": [8, 9]});
    let known = read(send(bootstrap, "/query_dp_ranks", &rooms).await.unwrap()).await;
    assert_eq!(known.json(), json!({"9": 3}));
}

#[tokio::test]
async fn metric_names_depend_on_role_and_version() {
    for (version, present, absent) in [
        (
            Version::V0_5,
            [
                "num_prefill_bootstrap_queue_reqs",
                "num_prefill_inflight_queue_reqs",
                "kv_transfer_total_mb_sum",
            ],
            "num_prefill_infight_queue_reqs",
        ),
        (
            Version::V0_4_10,
            ["num_prefill_prealloc_queue_reqs", "num_prefill_infight_queue_reqs", "token_usage"],
            "kv_transfer_total_mb_sum",
        ),
    ] {
        let pair = pair(version).await;
        let body = pair.meet(generate(&"word ".repeat(1024), 3), 1);
        let (prefill, _) = pair.both("/generate", &body).await;
        let tokens = prefill.json()["meta_info"]["prompt_tokens"].as_f64().unwrap();
        let page = get(&pair.prefill, "/metrics").await.text();
        for name in present {
            assert!(page.contains(&format!("\nsglang:{name}{{engine_type=\"prefill\"")), "{name}");
        }
        assert!(!page.contains(absent), "{absent}");
        assert!(!page.contains("time_to_first_token"));
        assert!(!page.contains("num_transfer_failed_reqs"), "it appears with the first failure");
        if version == Version::V0_5 {
            let line = page.lines().find(|l| l.starts_with("sglang:kv_transfer_total_mb_sum"));
            let sum: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
            assert!((sum - tokens / 1024.0).abs() < 1e-6, "{sum} of {tokens}");
        }
        let page = get(&pair.decode, "/metrics").await.text();
        assert!(page.contains("sglang:time_to_first_token_seconds_bucket{"), "{page}");
        assert!(page.contains("sglang:inter_token_latency_seconds_count{"));
    }
}

#[tokio::test]
async fn a_room_selects_the_prefill_rank_and_another_forced_rank_is_an_error() {
    let ranked = |role| Config { dp_size: 4, ..config(role, Version::V0_5) };
    let pair = Pair {
        prefill: start(ranked(Role::Prefill)).await,
        decode: start(ranked(Role::Decode)).await,
    };
    for room in 0..8 {
        let (_, decode) = pair.both("/generate", &pair.meet(generate("a", 2), room)).await;
        text_of(&decode);
    }
    let mut forced = pair.meet(generate("a", 2), 5);
    forced["routed_dp_rank"] = json!(3);
    let conflict = post(&pair.prefill, "/generate", &forced).await;
    assert_eq!(conflict.status, 500);
    let text = "dispatched to dp_rank 3 but bootstrap_room 5 implies dp_rank 1";
    assert!(conflict.text().contains(text), "{conflict:?}");
    forced["disagg_prefill_dp_rank"] = json!(3);
    let (prefill, decode) = pair.both("/generate", &forced).await;
    text_of(&prefill);
    text_of(&decode);
    forced["routed_dp_rank"] = json!(4);
    assert_eq!(post(&pair.decode, "/generate", &forced).await.status, 400);
    let loads = get(&pair.prefill, "/v1/loads?include=core,disagg").await.json();
    assert_eq!(loads["dp_rank_count"], 4);
    assert_eq!(loads["loads"][3]["dp_rank"], 3);
    assert_eq!(loads["loads"][0]["disaggregation"]["mode"], "prefill");
    assert!(loads["loads"][0].get("queues").is_none());
    assert_eq!(status(&pair.prefill, "/v1/loads?include=nonsense").await, 400);
}

#[tokio::test]
async fn health_takes_at_least_the_pause_on_0_5() {
    let engine = start(config(Role::Prefill, Version::V0_5)).await;
    let started = std::time::Instant::now();
    assert_eq!(status(&engine, "/health").await, 200);
    assert!(started.elapsed() >= short_timeouts().health_pause);
}
