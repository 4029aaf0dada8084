//! RequestMirror: copies of requests that reach other backends, and never hold up the requests
//! themselves.

use std::sync::{Arc, Mutex};

use router_tests::fleet::SOON;
use router_tests::loopback::Loopback;
use router_tests::manifests::{ENGINE_PORT, POOL, route};
use router_tests::{Fleet, Gateway, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxying::{Backend, manifests};
use crate::{CHAT, chat};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const FAILING: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 6\r\n\r\nshadow";

/// A backend that records whole requests of one connection each. Without an answer it never sends one.
struct Shadow {
    address: Loopback,
    requests: Arc<Mutex<Vec<(String, String)>>>,
}

impl Shadow {
    async fn start(answer: Option<&'static str>) -> Shadow {
        let address = Loopback::claim();
        let listener = TcpListener::bind(address.port(ENGINE_PORT)).await.expect("a port");
        let requests: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let record = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, answer, Arc::clone(&record)));
            }
        });
        Shadow { address, requests }
    }

    /// The Service `shadow` of this backend.
    fn service(&self) -> String {
        let ip = self.address.ip();
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: shadow}}
spec: {{ports: [{{name: http, port: 80, targetPort: {ENGINE_PORT}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: shadow-1, labels: {{kubernetes.io/service-name: shadow}}}}
addressType: IPv4
ports: [{{name: http, port: {ENGINE_PORT}}}]
endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]
"
        )
    }

    /// Head and body of each request, once there are that many.
    async fn arrived(&self, count: usize) -> Vec<(String, String)> {
        eventually("mirrored requests arrive", SOON, async || {
            let requests = self.requests.lock().expect("no panic").clone();
            (requests.len() >= count).then_some(requests)
        })
        .await
    }
}

async fn serve(
    mut socket: TcpStream,
    answer: Option<&'static str>,
    record: Arc<Mutex<Vec<(String, String)>>>,
) {
    let mut bytes = Vec::new();
    loop {
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.map_or(0, |text| text.parse().expect("a length"));
        if body.len() < length {
            continue;
        }
        record.lock().expect("no panic").push((head, body.to_owned()));
        bytes.clear();
        match answer {
            Some(answer) => _ = socket.write_all(answer.as_bytes()).await,
            None => std::future::pending().await,
        }
    }
}

/// A route to the pool that mirrors its requests to the Service `shadow`.
fn mirrored_route() -> String {
    route("/", POOL).replace(
        "    backendRefs:\n",
        "    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-tenant, value: guest}]}
    - type: RequestMirror
      requestMirror: {backendRef: {name: shadow, port: 80}}
    backendRefs:
",
    )
}

async fn pool_with(shadow: &Shadow, flags: &[&str]) -> (Fleet, Gateway) {
    let fleet = Fleet::start(1, 1).await;
    fleet.manifests.put("shadow.yaml", &shadow.service());
    fleet.manifests.put("route.yaml", &mirrored_route());
    let gateway = fleet.gateway_with(flags).await;
    (fleet, gateway)
}

async fn dropped(gateway: &Gateway, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    gateway.metric("pd_router_mirrors_dropped_total", &[&label]).await
}

async fn until_mirrored(gateway: &Gateway, code: &str, count: f64) {
    let labels = ["endpoint=\"mirror\"", code];
    eventually("mirrored requests are counted", SOON, async || {
        (gateway.metric("pd_router_requests_total", &labels).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mirror_gets_the_whole_request_and_its_failure_is_nobodys() {
    let shadow = Shadow::start(Some(FAILING)).await;
    let (fleet, gateway) = pool_with(&shadow, &[]).await;
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let requests = shadow.arrived(1).await;
    let (head, body) = &requests[0];
    assert!(head.starts_with(&format!("post {CHAT} http/1.1\r\n")), "{head}");
    assert!(head.contains("\r\nx-tenant: guest"), "{head}");
    let id = answer.header("x-request-id");
    assert!(head.contains(&format!("\r\nx-request-id: {id}")), "{id}: {head}");
    let sent: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(sent, chat("hi"), "engine control must not reach a mirror");
    until_mirrored(&gateway, "code=\"500\"", 1.0).await;
    assert_eq!(fleet.prefill[0].legs().len(), 1, "the pool serves the request once");
}

#[tokio::test]
async fn a_pool_can_mirror_what_a_service_answers() {
    let fleet = Fleet::start(1, 1).await;
    let backend = Backend::start(OK).await;
    let of_backend = manifests(&backend);
    let service = std::fs::read_to_string(of_backend.path().join("service.yaml")).expect("a file");
    fleet.manifests.put("service.yaml", service.split("---\napiVersion: gateway").next().unwrap());
    let to_plain = "    filters:
    - type: RequestMirror
      requestMirror: {backendRef: {group: inference.networking.x-k8s.io, kind: InferencePool, name: NAME}}
    backendRefs: [{name: plain, port: 80}]
"
    .replace("NAME", POOL);
    let route = route("/", POOL);
    let (start, _) = route.split_once("    backendRefs:\n").expect("backends");
    fleet.manifests.put("route.yaml", &format!("{start}{to_plain}"));
    let gateway = fleet.gateway().await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let legs = fleet.decode[0].legs_arrived(1).await;
    assert_eq!(legs.len(), 1);
    until_mirrored(&gateway, "code=\"200\"", 1.0).await;
    fleet.idle().await;
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_mirror_that_hangs_holds_up_no_request() {
    let shadow = Shadow::start(None).await;
    let (_fleet, gateway) = pool_with(&shadow, &["--max-mirrors", "1"]).await;
    for _ in 0..3 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    assert_eq!(shadow.arrived(1).await.len(), 1);
    assert_eq!(dropped(&gateway, "too_many").await, 2.0);
}

#[tokio::test]
async fn a_body_over_the_memory_of_mirrors_is_not_mirrored() {
    let shadow = Shadow::start(Some(OK)).await;
    let (_fleet, gateway) = pool_with(&shadow, &["--max-mirror-memory", "1000"]).await;
    let long = chat(&"x".repeat(2000));
    gateway.client.post(CHAT, &long).await.expect_status(200);
    eventually("the drop is counted", SOON, async || {
        (dropped(&gateway, "no_memory").await == 1.0).then_some(())
    })
    .await;
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let requests = shadow.arrived(1).await;
    let body: Value = serde_json::from_str(&requests[0].1).expect("JSON");
    assert_eq!(body["messages"], json!([{"role": "user", "content": "hi"}]));
}
