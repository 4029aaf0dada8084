//! What one worker or a backend answers alone is tried on a second one, if the first never got it.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::Method;
use router_tests::fleet::SOON;
use router_tests::loopback::Loopback;
use router_tests::manifests::{Pod, route};
use router_tests::{Fleet, Gateway, eventually};
use serde_json::json;

/// A Service of these addresses, and a route to it.
pub(crate) fn service(fleet: &Fleet, endpoints: &[IpAddr]) {
    service_with(fleet, endpoints, "protocol: TCP");
}

/// A Service of these addresses whose port has one more field, and a route to it.
pub(crate) fn service_with(fleet: &Fleet, endpoints: &[IpAddr], field: &str) {
    let mut yaml = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: plain}}
spec:
  ports: [{{name: http, port: 80, targetPort: 8000, {field}}}]
"
    );
    for (index, ip) in endpoints.iter().enumerate() {
        let slice = format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: plain-{index}, labels: {{kubernetes.io/service-name: plain}}}}
addressType: IPv4
ports: [{{name: http, port: 8000}}]
endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]
"
        );
        yaml.write_str(&slice).expect("writing into a string");
    }
    fleet.manifests.put("service.yaml", &yaml);
    let to_service = route("/v1/embeddings", "plain").replace(
        "      kind: InferencePool\n      group: inference.networking.x-k8s.io\n",
        "      port: 80\n",
    );
    fleet.manifests.put("service-route.yaml", &to_service);
}

fn arrivals(fleet: &Fleet, path: &str) -> usize {
    let count = |engine: &router_tests::fleet::Engine| engine.sim.received_on(path).len();
    fleet.engines().map(count).sum()
}

/// The number of requests with a second attempt, once this many requests are logged.
async fn retried_of(gateway: &Gateway, requests: usize) -> usize {
    let lines = |part: &str| gateway.log().lines().filter(|line| line.contains(part)).count();
    eventually("all requests are logged", SOON, async || {
        (lines("\"attempts\":") == requests).then_some(())
    })
    .await;
    lines("\"attempts\":2")
}

#[tokio::test]
async fn an_unreachable_endpoint_of_a_service_is_skipped_and_the_next_gets_the_body() {
    let fleet = Fleet::start_single(1).await;
    let gone = Loopback::claim();
    service(&fleet, &[gone.ip(), fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway().await;
    let body = json!({"model": "m", "input": "x".repeat(300_000)});
    for _ in 0..12 {
        gateway.client.post("/v1/embeddings", &body).await.expect_status(200);
    }
    assert_eq!(arrivals(&fleet, "/v1/embeddings"), 12, "each is sent once");
    let retried = retried_of(&gateway, 12).await;
    assert!(retried > 0, "the one that is gone was never tried");
}

#[tokio::test]
async fn an_endpoint_of_a_service_that_cannot_be_reached_is_left_for_a_while() {
    let fleet = Fleet::start_single(1).await;
    let gone = Loopback::claim();
    service(&fleet, &[gone.ip(), fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway().await;
    let began = std::time::Instant::now();
    for _ in 0..40 {
        gateway.client.post("/v1/embeddings", &json!({"input": "hi"})).await.expect_status(200);
    }
    // The time outs are two, four and eight seconds.
    let limit = if began.elapsed().as_secs() < 2 { 1 } else { 4 };
    let retried = retried_of(&gateway, 40).await;
    assert!(
        (1..=limit).contains(&retried),
        "{retried} of 40 requests met the endpoint that is gone"
    );
}

#[tokio::test]
async fn a_body_that_was_partly_sent_is_not_sent_again() {
    let fleet = Fleet::start_single(2).await;
    let addresses: Vec<IpAddr> = fleet.unified.iter().map(|engine| engine.address.ip()).collect();
    service(&fleet, &addresses);
    let gateway = fleet.gateway().await;
    for engine in &fleet.unified {
        let script = sglang_sim::Script::always(sglang_sim::Action::DropBeforeHead);
        engine.script(script.on("/v1/embeddings"));
    }
    let answer = gateway.client.post("/v1/embeddings", &json!({"input": "hi"})).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(arrivals(&fleet, "/v1/embeddings"), 1);
}

#[tokio::test]
async fn a_service_without_reachable_endpoint_is_a_502() {
    let fleet = Fleet::start_single(1).await;
    let gone = [Loopback::claim(), Loopback::claim(), Loopback::claim()];
    service(&fleet, &gone.each_ref().map(Loopback::ip));
    let gateway = fleet.gateway().await;
    let answer = gateway.client.post("/v1/embeddings", &json!({"input": "hi"})).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("x-pd-router-reason"), "engine_unreachable");
}

/// A gateway that believes in engines which are gone: it does not look often enough to know.
async fn believing(fleet: &Fleet) -> Gateway {
    let gateway = fleet.gateway_with(&["--probe-interval", "1h"]).await;
    for engine in &fleet.unified[..2] {
        engine.sim.kill().await;
    }
    gateway
}

#[tokio::test]
async fn a_forwarded_request_is_retried_on_a_second_worker() {
    let fleet = Fleet::start_single(3).await;
    let gateway = fleet.gateway_with(&["--probe-interval", "1h"]).await;
    fleet.unified[0].sim.kill().await;
    for _ in 0..12 {
        let body = json!({"model": "/models/Qwen3-32B", "prompt": "hi"});
        gateway.client.post("/tokenize", &body).await.expect_status(200);
        for path in ["/model_info", "/server_info", "/v1/models", "/health_generate"] {
            let answer = gateway.client.get(path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
    }
    assert_eq!(arrivals(&fleet, "/tokenize"), 12);
}

#[tokio::test]
async fn at_most_two_workers_are_tried() {
    let fleet = Fleet::start_single(3).await;
    let gateway = believing(&fleet).await;
    let answer = gateway.client.get("/v1/models").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    let request = gateway.client.request(Method::POST, "/tokenize", r#"{"prompt":"hi"}"#);
    let status = gateway.client.send(request).await.status;
    assert!([200, 502].contains(&status.as_u16()), "{status}");
    // Pods that left meanwhile do not count as tried.
    for engine in &fleet.unified[..2] {
        fleet.manifests.put_pod(&Pod { ready: false, ..engine.pod.clone() });
    }
    router_tests::eventually("the living one answers", router_tests::fleet::SOON, async || {
        (gateway.client.get("/v1/models").await.status == 200).then_some(())
    })
    .await;
}
