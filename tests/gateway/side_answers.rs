//! Answers about a pool that its engines give: what clients may see, and how often engines are asked.

use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use router_tests::client::Answer;
use router_tests::gateway::Gateway;
use router_tests::{Client, Fleet, eventually};
use sglang_sim::{Action, Config, RequestMatch, Role, Script};

fn guarded(config: Config) -> Config {
    Config { api_key: Some("SECRET-KEY".into()), ..config.instant() }
}

async fn get_with(client: Client, path: &str, key: &str) -> Answer {
    let mut request = client.request(http::Method::GET, path, "");
    request.headers_mut().insert(AUTHORIZATION, format!("Bearer {key}").parse().expect("a header"));
    client.send(request).await.answer().await
}

/// How often the engines were asked for this path by clients, which send a key.
fn asked(fleet: &Fleet, path: &str) -> usize {
    let count = |engine: &router_tests::fleet::Engine| {
        let received = engine.received();
        let of_clients = |request: &&sglang_sim::Received| {
            request.path() == path && request.headers.contains_key("x-request-id")
        };
        received.iter().filter(of_clients).count()
    };
    fleet.engines().map(count).sum()
}

async fn with_key_file(fleet: &Fleet) -> Gateway {
    let file = fleet.manifests.path().join(".engine-key");
    std::fs::write(&file, "SECRET-KEY").expect("writing a key");
    fleet.gateway_with(&["--engine-api-key-file", &file.to_string_lossy()]).await
}

#[tokio::test]
async fn information_about_engines_shows_no_key_and_no_address() {
    let keys =
        |config: Config| Config { admin_api_key: Some("ADMIN-KEY".into()), ..guarded(config) };
    let pair = Fleet::start_with(1, 1, keys).await;
    let mut single = Fleet::start_single(0).await;
    single.add(Role::Unified, keys).await;
    for fleet in [pair, single] {
        let gateway = with_key_file(&fleet).await;
        for path in ["/server_info", "/get_server_info", "/v1/models", "/model_info"] {
            let answer = get_with(gateway.client, path, "SECRET-KEY").await.expect_status(200);
            let text = answer.text();
            assert!(text.contains("Qwen3-32B"), "{path}: {text}");
            let addresses = fleet.engines().map(|engine| engine.pod.ip.to_string());
            for secret in ["SECRET-KEY".into(), "ADMIN-KEY".into()].into_iter().chain(addresses) {
                assert!(!text.contains(&*secret), "{path} shows {secret}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn callers_of_a_second_share_what_the_engines_answer() {
    const CALLS: usize = 12;
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway().await;
    for (path, engines) in [("/server_info", 4), ("/v1/models", 1), ("/health_generate", 2)] {
        let started = std::time::Instant::now();
        let client = gateway.client;
        let calls = (0..CALLS).map(|call| {
            let path = format!("{path}?call={call}");
            tokio::spawn(async move { client.get(&path).await.expect_status(200).text() })
        });
        let calls: Vec<_> = calls.collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.expect("an answer"));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{path}");
        // Each further second that the calls take allows one more fetch.
        let fetches = 1 + started.elapsed().as_secs() as usize;
        assert!(asked(&fleet, path) <= engines * fetches, "{path}: {}", asked(&fleet, path));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let before = asked(&fleet, path);
        gateway.client.get(path).await.expect_status(200);
        assert_eq!(asked(&fleet, path), before + engines, "{path}: an old answer");
    }
}

#[tokio::test]
async fn a_refused_health_check_is_the_engine_s_refusal_and_a_frozen_engine_ends_it_soon() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let script = |action| {
        let path = Some("/health_generate".to_owned());
        Script { matching: RequestMatch { path, ..RequestMatch::default() }, action, times: 1 }
    };
    let body = r#"{"error":"Unauthorized"}"#.to_owned();
    fleet.decode[0].script(script(Action::Status { status: 401, body }));
    let refused = gateway.client.get("/health_generate").await.expect_status(401);
    assert_eq!(refused.header("x-pd-router-reason"), "engine_refused");
    assert!(refused.header("retry-after").is_empty());
    fleet.prefill[0].script(script(Action::HangHead));
    let started = Instant::now();
    // The refusal is shared for a second.
    eventually("the hung engine is asked", Duration::from_secs(20), async || {
        (gateway.client.get("/health_generate").await.status == 503).then_some(())
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_refusal_of_all_engines_is_the_client_s_answer() {
    let pair = Fleet::start_with(1, 1, guarded).await;
    let mut single = Fleet::start_single(0).await;
    single.add(Role::Unified, guarded).await;
    for fleet in [pair, single] {
        let gateway = with_key_file(&fleet).await;
        for path in ["/v1/models", "/server_info"] {
            // What a caller with the key got is not for one without it.
            get_with(gateway.client, path, "SECRET-KEY").await.expect_status(200);
            let answer = gateway.client.get(path).await.expect_status(401);
            assert_eq!(answer.error_message(), "Unauthorized");
            assert_eq!(answer.header("x-pd-router-reason"), "engine_refused");
            assert!(answer.header("retry-after").is_empty());
            get_with(gateway.client, path, "other").await.expect_status(401);
        }
    }
}
