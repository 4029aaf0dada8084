//! Each Gateway has a Service, ports and an address of its own, for as long as it is there.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::api::DeleteParams;
use router_tests::manifests::LISTENER_PORT;
use router_tests::{Fleet, eventually};
use serde_json::{Value, json};

use crate::{CHAT, ELECTED, SOON, Scene, chat, patch};

/// A Gateway on the documents' port that lets everything through to their pool, under a path.
const SECOND: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: second}
spec:
  gatewayClassName: ack-gateway
  infrastructure: {annotations: {example.com/size: small}}
  listeners: [{name: http, protocol: HTTP, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: second}
spec:
  parentRefs: [{name: second}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /second}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs:
    - {group: inference.networking.x-k8s.io, kind: InferencePool, name: qwen-inference-pool}
";

fn ports(services: &[Service]) -> BTreeSet<(i32, String)> {
    let ports = services.iter().filter_map(|service| service.spec.as_ref()?.ports.clone());
    let spelled = |port: k8s_openapi::api::core::v1::ServicePort| {
        (port.port, json!(port.target_port).to_string())
    };
    ports.flatten().map(spelled).collect()
}

fn annotation(services: &[Service], name: &str) -> Option<String> {
    let all = services.iter().filter_map(|service| service.metadata.annotations.clone());
    all.flatten().find(|(known, _)| known == name).map(|(_, value)| value)
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_on_one_port_are_served_apart_and_outlive_the_leader() {
    let scene = Scene::with_documents().await;
    let leader = scene.replica().await;
    let fleet = Fleet::start(1, 1).await;
    scene.serve(&leader, &fleet).await;
    scene.cluster.kubectl(&["apply", "-f", "-"], SECOND);

    let first = scene.entrance("inference-gateway", LISTENER_PORT).await;
    let second = scene.entrance("second", LISTENER_PORT).await;
    assert_ne!(first.address, second.address);
    first.post(CHAT, &chat("to the first")).await.expect_status(200);
    second.post(&format!("/second{CHAT}"), &chat("to the second")).await.expect_status(200);
    second.post(CHAT, &chat("a route of the first alone")).await.expect_status(404);
    let services = scene.services().await;
    assert_eq!(
        ports(&services).len(),
        2,
        "one port of two Services, to two ports of the gateway: {services:?}"
    );
    assert_eq!(annotation(&services, "example.com/size").as_deref(), Some("small"));

    // Another replica reads the same ports, and takes over when the leader is gone.
    let follower = scene.replica().await;
    eventually("both listeners are open there too", SOON, async || {
        let listeners = follower.fleet().await["listeners"].as_array().map(Vec::len);
        (listeners == Some(2)).then_some(())
    })
    .await;
    scene.balancer.remove(leader.address.ip());
    drop(leader);
    first.post(CHAT, &chat("by the follower")).await.expect_status(200);

    let gateways = scene.api("gateway.networking.k8s.io/v1", "Gateway", "gateways");
    let listener =
        |port: u16| json!({"name": format!("p{port}"), "protocol": "HTTP", "port": port});
    let listeners: Vec<Value> = [8080, 80].map(listener).into();
    patch(&gateways, "second", json!({"spec": {"listeners": listeners}})).await;
    let at_80 = scene.entrance("second", 80).await;
    at_80.post(&format!("/second{CHAT}"), &chat("on a further port")).await.expect_status(200);
    let after = ports(&scene.services().await);
    assert!(after.is_superset(&ports(&services)), "what was there keeps its port: {after:?}");

    gateways.delete("second", &DeleteParams::default()).await.expect("deleting a Gateway");
    eventually("its Service is swept", ELECTED, async || {
        (scene.services().await.len() == 1).then_some(())
    })
    .await;
    first.post(CHAT, &chat("the first goes on")).await.expect_status(200);

    // Another controller's class takes the other one away.
    let class = r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "other"}, "spec": {"controllerName": "example.com/other"}}"#;
    scene.cluster.kubectl(&["apply", "-f", "-"], class);
    patch(&gateways, "inference-gateway", json!({"spec": {"gatewayClassName": "other"}})).await;
    eventually("its Service is swept too", ELECTED, async || {
        scene.services().await.is_empty().then_some(())
    })
    .await;
}
