//! Endpoints: what is served, what is refused and how, what is never reachable.

use http::Method;
use router_tests::received::assert_pair;
use router_tests::{Client, Fleet, Stream};
use serde_json::json;

use crate::chat;

async fn status(client: Client, method: Method, path: &str) -> u16 {
    let stream: Stream = client.send(client.request(method, path, "{}")).await;
    stream.status.as_u16()
}

#[tokio::test]
async fn administrative_endpoints_are_not_reachable() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    for path in [
        "/flush_cache",
        "/abort_request",
        "/update_weights_from_disk",
        "/start_profile",
        "/pause_generation",
        "/metrics",
        "/v1/loads",
        "/sim/script",
        "/v1/chat/completions/",
        "//flush_cache",
        "/v1/../flush_cache",
        "/%66lush_cache",
    ] {
        for method in [Method::GET, Method::POST] {
            assert_eq!(status(gateway.client, method, path).await, 404, "{path}");
        }
        let reached = |engine: &router_tests::fleet::Engine| {
            let paths: Vec<String> =
                engine.received().iter().map(|request| request.path().to_owned()).collect();
            paths.iter().any(|reached| reached.contains("flush") || reached == path)
        };
        assert!(
            !fleet.engines().any(reached) || path == "/v1/loads" || path == "/metrics",
            "{path}"
        );
    }
}

#[tokio::test]
async fn an_endpoint_that_a_pair_cannot_serve_is_a_501() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    for path in ["/v1/embeddings", "/v1/rerank", "/v1/score"] {
        let answer = gateway.client.post(path, &json!({"input": "hi"})).await.expect_status(501);
        assert!(answer.error_message().contains(path), "{}", answer.text());
    }
    assert_eq!(status(gateway.client, Method::GET, crate::CHAT).await, 405);
}

#[tokio::test]
async fn every_generating_endpoint_is_served_by_a_pair() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let model = "/models/Qwen3-32B";
    let requests = [
        (crate::CHAT, chat("hi")),
        ("/v1/completions", json!({"model": model, "prompt": "hi", "max_tokens": 4})),
        ("/generate", json!({"text": "hi", "sampling_params": {"max_new_tokens": 4}})),
        ("/v1/responses", json!({"model": model, "input": "hi", "max_output_tokens": 4})),
        (
            "/v1/messages",
            json!({"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}),
        ),
    ];
    for (index, (path, body)) in requests.into_iter().enumerate() {
        gateway.client.post(path, &body).await.expect_status(200);
        let prefill = fleet.prefill[0].legs_arrived(index + 1).await.pop().expect("it arrived");
        let decode = fleet.decode[0].legs_arrived(index + 1).await.pop().expect("it arrived");
        assert_eq!((prefill.path(), decode.path()), (path, path));
        let room = |leg: &sglang_sim::Received| leg.json()["bootstrap_room"].clone();
        assert_eq!(room(&prefill), room(&decode), "{path}");
        if path.ends_with("completions") || path == "/generate" {
            assert_pair(&prefill, &decode);
        }
    }
}

#[tokio::test]
async fn a_response_that_continues_another_is_refused_with_the_reason() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let mut body = json!({"model": "/models/Qwen3-32B", "input": "hi", "max_output_tokens": 4});
    let first = gateway.client.post("/v1/responses", &body).await.expect_status(200);
    body["previous_response_id"] = first.json()["id"].clone();
    let answer = gateway.client.post("/v1/responses", &body).await.expect_status(400);
    assert!(answer.error_message().contains("previous_response_id"), "{}", answer.text());
    assert_eq!(fleet.decode[0].legs().len(), 1);
}

#[tokio::test]
async fn models_and_information_about_the_pool_are_served() {
    let fleet = Fleet::start(2, 1).await;
    let gateway = fleet.gateway().await;
    let models = gateway.client.get("/v1/models").await.expect_status(200).json();
    assert_eq!(models["data"][0]["id"], "/models/Qwen3-32B");
    for path in ["/server_info", "/get_server_info"] {
        let info = gateway.client.get(path).await.expect_status(200).json();
        assert_eq!(info["prefill"].as_array().map(Vec::len), Some(2), "{info}");
        assert_eq!(info["decode"].as_array().map(Vec::len), Some(1), "{info}");
    }
    for path in ["/model_info", "/get_model_info"] {
        let info = gateway.client.get(path).await.expect_status(200).json();
        assert_eq!(info["model_path"], "/models/Qwen3-32B");
    }
    gateway.client.get("/health").await.expect_status(200);
}

#[tokio::test]
async fn the_admin_port_serves_probes_the_fleet_and_metrics() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    gateway.client.post(crate::CHAT, &chat("hi")).await.expect_status(200);
    assert_eq!(gateway.admin.get("/livez").await.status, 200);
    assert_eq!(gateway.admin.get("/nothing").await.status, 404);
    let fleet_json = gateway.fleet().await.to_string();
    for name in ["prefill-0", "decode-0", router_tests::manifests::POOL] {
        assert!(fleet_json.contains(name), "{name}: {fleet_json}");
    }
    assert_eq!(gateway.metric("pd_router_requests_total", &["code=\"200\""]).await, 1.0);
    for leg in ["prefill", "decode"] {
        let label = format!("leg=\"{leg}\"");
        let count =
            gateway.metric("pd_router_leg_requests_total", &[&label, "outcome=\"ok\""]).await;
        assert_eq!(count, 1.0, "{leg}");
    }
}

#[tokio::test]
async fn simultaneous_scrapes_list_every_worker() {
    // Enough workers that an incomplete page shows soon if scrapes disturb each other.
    const PODS: usize = 250;
    let fleet = Fleet::start(1, 1).await;
    for number in 0..PODS {
        let ip = std::net::Ipv4Addr::new(192, 0, 2, u8::try_from(number).expect("few"));
        let pod = router_tests::manifests::Pod::new(&format!("pod-{number}"), "decode", ip.into());
        fleet.manifests.put_pod(&router_tests::manifests::Pod { ready: false, ..pod });
    }
    let gateway = fleet.gateway().await;
    let admin = gateway.admin;
    let scrapes: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..150 {
                    let page = admin.get("/metrics").await.expect_status(200).text();
                    assert_eq!(page.matches("pd_router_worker_up{").count(), PODS + 2);
                }
            })
        })
        .collect();
    for scrape in scrapes {
        scrape.await.expect("no worker was missing");
    }
}

#[tokio::test]
async fn a_request_is_one_line_of_the_log_with_the_reason_of_its_failure() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    let refusal = sglang_sim::Action::Status { status: 500, body: r#"{"message":"no"}"#.into() };
    fleet.decode[0].once(refusal);
    let answer = gateway.client.post(crate::CHAT, &chat("hi")).await.expect_status(500);
    let id = answer.header("x-request-id").to_owned();
    let soon = std::time::Duration::from_secs(2);
    let line = router_tests::eventually("the request's line", soon, async || {
        gateway.log().lines().find(|line| line.contains(&id)).map(str::to_owned)
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    assert!(line.to_string().contains(answer.header("x-pd-router-reason")), "{line}");
    assert_eq!(gateway.log().lines().filter(|line| line.contains(&id)).count(), 1);
}
