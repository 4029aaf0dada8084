//! HTTPRoute as the Gateway API defines it: which rule matches, and what its filters do.

use http::{HeaderName, HeaderValue, Method};
use router_tests::loopback::Loopback;
use router_tests::manifests::{LISTENER_PORT, POOL, gateway, route};
use router_tests::{Client, Fleet, Gateway, Manifests};
use serde_json::json;

use crate::{CHAT, chat};

/// Rules whose redirect shows which of them matched, in an order that does not help.
const TABLE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: table, creationTimestamp: "2025-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: inference-gateway}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    filters: &to_root [{type: RequestRedirect, requestRedirect: {hostname: root.test}}]
  - matches: [{path: {type: PathPrefix, value: /a}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: prefix-a.test}}]
  - matches: [{path: {type: PathPrefix, value: /a/b}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: prefix-a-b.test}}]
  - matches: [{path: {type: Exact, value: /a/b}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: exact-a-b.test}}]
  - matches: [{path: {type: PathPrefix, value: /a}, method: PUT}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: put.test}}]
  - matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: X-Tier, value: gold}]}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: header.test}}]
  - matches:
    - path: {type: PathPrefix, value: /a}
      headers: [{name: x-tier, value: gold}, {name: x-zone, value: b}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: headers.test}}]
  - matches: [{path: {type: PathPrefix, value: /a}, queryParams: [{name: q, value: "1"}]}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: query.test}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-host, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: inference-gateway}]
  hostnames: ["*.wild.test", "one.wild.test"]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: host.test}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: younger, creationTimestamp: "2026-06-01T00:00:00Z"}
spec:
  parentRefs: [{name: inference-gateway}]
  rules:
  - matches: [{path: {type: Exact, value: /a/b}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: younger.test}}]
"#;

/// Method, path, header, host, and the rule that must match.
const CASES: [(&str, &str, &str, &str, &str); 17] = [
    ("GET", "/", "", "any.test", "root"),
    ("GET", "/other", "", "any.test", "root"),
    ("GET", "/a", "", "any.test", "prefix-a"),
    ("GET", "/a/", "", "any.test", "prefix-a"),
    ("GET", "/ab", "", "any.test", "root"),
    ("GET", "/a/c", "", "any.test", "prefix-a"),
    ("GET", "/a/b", "", "any.test", "exact-a-b"),
    ("GET", "/a/b/", "", "any.test", "prefix-a-b"),
    ("GET", "/a/b/c", "", "any.test", "prefix-a-b"),
    ("PUT", "/a/c", "", "any.test", "put"),
    ("PUT", "/a/c", "x-tier: gold", "any.test", "put"),
    ("GET", "/a/c", "x-tier: gold", "any.test", "header"),
    ("GET", "/a/c", "x-tier: gold; x-zone: b", "any.test", "headers"),
    ("GET", "/a/c?q=1", "x-tier: gold", "any.test", "header"),
    ("GET", "/a/c?q=1", "", "any.test", "query"),
    ("GET", "/a/b", "", "one.wild.test", "host"),
    ("GET", "/a/b", "", "wild.test", "exact-a-b"),
];

async fn table() -> (Gateway, Manifests) {
    let manifests = Manifests::new();
    manifests.put("gateway.yaml", &gateway());
    manifests.put("table.yaml", TABLE);
    (Gateway::start(&manifests).await, manifests)
}

#[tokio::test]
async fn rules_match_in_the_gateway_apis_order() {
    let (gateway, _manifests) = table().await;
    for (method, path, headers, host, expected) in CASES {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = gateway.client.request(method.clone(), path, "");
        let host_value = HeaderValue::from_static(host);
        request.headers_mut().insert(http::header::HOST, host_value);
        for (name, value) in headers.split("; ").filter_map(|header| header.split_once(": ")) {
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let answer = gateway.client.send(request).await.answer().await;
        let case = format!("{method} {path} [{headers}] at {host}");
        assert_eq!(answer.status, 302, "{case}: {}", answer.text());
        let location = answer.header("location");
        assert!(location.contains(&format!("//{expected}.test")), "{case}: {location}");
    }
}

#[tokio::test]
async fn a_request_that_no_rule_matches_is_a_404() {
    let fleet = Fleet::start(1, 1).await;
    fleet.manifests.put("route.yaml", &route("/v1", POOL));
    let gateway = fleet.gateway().await;
    let answer = gateway.client.post("/generate", &json!({"text": "hi"})).await.expect_status(404);
    assert_eq!(answer.header("x-pd-router-reason"), "no_route");
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
}

#[tokio::test]
async fn a_rule_for_get_does_not_match_head() {
    let fleet = Fleet::start_single(1).await;
    let for_get =
        route("/", POOL).replace("        value: /\n", "        value: /\n      method: GET\n");
    fleet.manifests.put("route.yaml", &for_get);
    let gateway = fleet.gateway().await;
    let request = |method| gateway.client.request(method, "/get_model_info", "");
    gateway.client.send(request(Method::GET)).await.answer().await.expect_status(200);
    let answer = gateway.client.send(request(Method::HEAD)).await.answer().await.expect_status(404);
    assert_eq!(answer.header("x-pd-router-reason"), "no_route");
    assert_eq!(answer.header("content-type"), "", "there is no content");
}

fn route_with(rule: &str) -> String {
    format!("{}{rule}", route("/team", POOL))
}

#[tokio::test]
async fn filters_rewrite_paths_and_headers_both_ways() {
    let fleet = Fleet::start(1, 1).await;
    fleet.manifests.put(
        "route.yaml",
        &route_with(
            "    filters:
    - type: URLRewrite
      urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: x-team, value: blue}]
        add: [{name: x-more, value: two}]
        remove: [x-secret]
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: x-answered-by, value: pd}]
        remove: [server]
",
        ),
    );
    let gateway = fleet.gateway().await;
    let mut request =
        gateway.client.json_request("/team/v1/chat/completions", chat("hi").to_string());
    for (name, value) in [("x-team", "red"), ("x-more", "one"), ("x-secret", "s")] {
        request
            .headers_mut()
            .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let answer = gateway.client.send(request).await.answer().await.expect_status(200);
    assert_eq!(answer.header("x-answered-by"), "pd");
    assert!(!answer.headers.contains_key("server"));
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        assert_eq!(leg.path(), CHAT);
        assert_eq!(leg.headers["x-team"], "blue");
        let more: Vec<&HeaderValue> = leg.headers.get_all("x-more").iter().collect();
        assert_eq!(more, ["one", "two"]);
        assert!(!leg.headers.contains_key("x-secret"));
    }
}

#[tokio::test]
async fn a_rules_timeout_ends_the_request_and_both_engines() {
    let fleet = Fleet::start(1, 1).await;
    let rule = "    timeouts: {request: 300ms}\n";
    let limited = route_with(rule).replace("value: /team", "value: /");
    fleet.manifests.put("route.yaml", &limited);
    let gateway = fleet.gateway().await;
    fleet.prefill[0].once(sglang_sim::Action::NeverRendezvous);
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(504);
    assert_eq!(answer.header("x-pd-router-reason"), "request_timeout");
    assert!(answer.took < router_tests::fleet::SOON, "{:?}", answer.took);
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        engine.abort_arrived(&leg).await;
    }
}

#[tokio::test]
async fn the_gateways_policy_gives_a_timeout_to_all_its_routes() {
    let fleet = Fleet::start(1, 1).await;
    fleet.manifests.put(
        "timeout.yaml",
        "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: backend-timeout}
spec:
  timeout: {http: {requestTimeout: 300ms}}
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: inference-gateway}
",
    );
    let gateway = fleet.gateway().await;
    fleet.prefill[0].once(sglang_sim::Action::NeverRendezvous);
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(504);
    assert_eq!(answer.header("x-pd-router-reason"), "request_timeout");
}

#[tokio::test]
async fn weights_share_requests_out() {
    let fleet = Fleet::start(1, 1).await;
    let weighted = route("/", POOL).replace(
        "    backendRefs:\n",
        "    backendRefs:\n    - {name: no-such, kind: InferencePool, \
         group: inference.networking.x-k8s.io, weight: 0}\n",
    );
    fleet.manifests.put("route.yaml", &weighted);
    let gateway = fleet.gateway().await;
    for _ in 0..20 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    }
    fleet.manifests.put("route.yaml", &weighted.replace("weight: 0", "weight: 1"));
    let mut statuses = Vec::new();
    let soon = std::time::Duration::from_secs(2);
    router_tests::eventually("both backends have their share", soon, async || {
        statuses.push(gateway.client.post(CHAT, &chat("hi")).await.status.as_u16());
        (statuses.contains(&500) && statuses.contains(&200)).then_some(())
    })
    .await;
    assert!(statuses.iter().all(|status| [200, 500].contains(status)), "{statuses:?}");
}

#[tokio::test]
async fn a_service_is_plainly_proxied_to_its_endpoints() {
    let fleet = Fleet::start(1, 1).await;
    let ip = fleet.decode[0].address.ip();
    fleet.manifests.put(
        "service.yaml",
        &format!(
            "apiVersion: v1
kind: Service
metadata: {{name: plain}}
spec:
  ports: [{{name: http, port: 80, targetPort: 8000}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: plain-1, labels: {{kubernetes.io/service-name: plain}}}}
addressType: IPv4
ports: [{{name: http, port: 8000}}]
endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]
"
        ),
    );
    let to_service = route("/flush_cache", "plain").replace(
        "      kind: InferencePool\n      group: inference.networking.x-k8s.io\n",
        "      port: 80\n",
    );
    fleet.manifests.put("service-route.yaml", &to_service);
    let gateway = fleet.gateway().await;
    // A Service is the operator's own word: nothing of it is filtered or injected.
    let answer = gateway.client.post("/flush_cache?a=1", &json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let arrived = fleet.decode[0].received();
    let arrived = arrived.iter().find(|request| request.path() == "/flush_cache").expect("arrived");
    assert_eq!(arrived.uri.query(), Some("a=1"));
    assert_eq!(arrived.json(), json!({}));
}

/// A gateway on the engines of a fleet, given by flags, a client of its port, and its address.
pub(crate) async fn on_the_command_line(
    fleet: &Fleet,
    flags: &[&str],
) -> (Gateway, Client, Loopback) {
    let url = |engine: &router_tests::fleet::Engine| format!("http://{}:8000", engine.address.ip());
    let (prefill, decode) = (url(&fleet.prefill[0]), url(&fleet.decode[0]));
    let host = Loopback::claim();
    let ip = host.ip().to_string();
    let words = ["--pd-disaggregation", "--prefill", &prefill, "34000", "--decode", &decode];
    let words = [&words[..], &["--host", &ip, "--port", "8080"]].concat();
    let source: Vec<std::ffi::OsString> = words.into_iter().map(Into::into).collect();
    let gateway = Gateway::spawn(&source, LISTENER_PORT, flags);
    gateway.wait_until_ready().await;
    let client = Client::new(host.port(LISTENER_PORT));
    (gateway, client, host)
}

#[tokio::test]
async fn engines_of_the_command_line_need_no_manifests() {
    let fleet = Fleet::start(1, 1).await;
    let (_gateway, client, _host) = on_the_command_line(&fleet, &[]).await;
    client.post(CHAT, &chat("hi")).await.expect_status(200);
    assert_eq!(fleet.prefill[0].legs()[0].json()["bootstrap_port"], 34000);
}
