//! Web pages of other origins: preflight requests, and the fields that let a page read a response.

use http::{HeaderName, HeaderValue, Method};
use router_tests::fleet::SOON;
use router_tests::manifests::{POOL, route};
use router_tests::{Answer, Client, Fleet, Gateway, eventually};

use crate::proxying::{Backend, manifests};
use crate::routing::on_the_command_line;
use crate::{CHAT, chat};

/// A backend that allows every page itself.
const PERMISSIVE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\
                          access-control-allow-origin: *\r\nvary: accept\r\n\r\nok";

/// The rules of the Gateway API's test HTTPRouteCORS.
const RULES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cors}
spec:
  parentRefs: [{name: inference-gateway}]
  rules:
  - matches: [{path: {value: /cors-1}}]
    filters:
    - type: CORS
      cors:
        allowOrigins: ["https://www.foo.com", "https://*.bar.com"]
        allowMethods: [GET, OPTIONS]
        allowHeaders: [x-header-1, x-header-2]
        exposeHeaders: [x-header-3, x-header-4]
        allowCredentials: true
        maxAge: 3600
    backendRefs: &plain [{name: plain, port: 80}]
  - matches: [{path: {value: /cors-2}}]
    filters: [{type: CORS, cors: {allowOrigins: ["https://www.foo.com"], allowMethods: ["*"]}}]
    backendRefs: *plain
  - matches: [{path: {value: /any-origin}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: [PUT]}}]
    backendRefs: *plain
  - matches: [{path: {value: /any-with-credentials}}]
    filters:
    - type: CORS
      cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"], allowCredentials: true}
    backendRefs: *plain
  - matches: [{path: {value: /any-without-credentials}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"]}}]
    backendRefs: *plain
"#;

/// Rules for `DELETE`, and one that allows every page everything else.
const NARROW: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: narrow}
spec:
  parentRefs: [{name: inference-gateway}]
  rules:
  - matches: [{path: {value: /vault}, method: DELETE}]
    filters:
    - type: CORS
      cors: {allowOrigins: ["https://trusted.test"], allowMethods: [DELETE]}
    backendRefs: &plain [{name: plain, port: 80}]
  - matches: [{path: {value: /bare}, method: DELETE}]
    backendRefs: *plain
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: wide}
spec:
  parentRefs: [{name: inference-gateway}]
  rules:
  - matches: [{path: {value: /}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], allowMethods: ["*"]}}]
    backendRefs: [{name: plain, port: 80}]
"#;

const ORIGIN: &str = "access-control-allow-origin";
const METHODS: &str = "access-control-allow-methods";
const HEADERS: &str = "access-control-allow-headers";
const EXPOSED: &str = "access-control-expose-headers";
const AGE: &str = "access-control-max-age";
const CREDENTIALS: &str = "access-control-allow-credentials";

async fn send(
    client: &Client,
    (method, path): (Method, &str),
    body: &'static str,
    fields: &[(&'static str, &'static str)],
) -> Answer {
    let mut request = client.request(method, path, body);
    for (name, value) in fields {
        let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
        request.headers_mut().insert(name, value);
    }
    client.send(request).await.answer().await
}

async fn preflight(
    client: &Client,
    path: &str,
    origin: &'static str,
    method: &'static str,
    headers: Option<&'static str>,
) -> Answer {
    let mut fields = vec![("origin", origin), ("access-control-request-method", method)];
    fields.extend(headers.map(|headers| ("access-control-request-headers", headers)));
    send(client, (Method::OPTIONS, path), "", &fields).await.expect_status(204)
}

/// Checks the CORS fields of an answer; an empty value is an absent field.
fn expect(answer: &Answer, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(answer.header(name), *value, "{name}: {:?}", answer.headers);
    }
}

#[tokio::test]
async fn preflight_requests_get_what_the_gateway_apis_suite_demands() {
    let backend = Backend::start(PERMISSIVE).await;
    let manifests = manifests(&backend);
    manifests.put("cors.yaml", RULES);
    let gateway = Gateway::start(&manifests).await;
    let client = &gateway.client;
    let two = Some("x-header-1, x-header-2");
    for origin in ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"] {
        let answer = preflight(client, "/cors-1", origin, "GET", two).await;
        expect(&answer, &[(ORIGIN, origin), (METHODS, "GET, OPTIONS"), (AGE, "3600")]);
        expect(&answer, &[(HEADERS, "x-header-1, x-header-2"), (CREDENTIALS, "true")]);
        expect(&answer, &[(EXPOSED, "x-header-3, x-header-4")]);
    }
    let none = [(ORIGIN, ""), (METHODS, ""), (HEADERS, ""), (CREDENTIALS, ""), (EXPOSED, "")];
    expect(&preflight(client, "/cors-1", "https://foobar.com", "GET", None).await, &none);
    let answer = preflight(client, "/cors-2", "https://www.foo.com", "POST", None).await;
    expect(&answer, &[(ORIGIN, "https://www.foo.com"), (METHODS, "POST"), (CREDENTIALS, "")]);
    expect(&answer, &[(AGE, "5"), (HEADERS, "")]);
    for origin in ["https://foobar.com", "https://foobar.com:12345"] {
        let answer = preflight(client, "/any-origin", origin, "PUT", None).await;
        expect(&answer, &[(ORIGIN, "*"), (METHODS, "PUT"), (CREDENTIALS, "")]);
    }
    let origin = "https://other.foo.com";
    let answer = preflight(client, "/any-with-credentials", origin, "PUT", two).await;
    expect(&answer, &[(ORIGIN, origin), (METHODS, "PUT"), (CREDENTIALS, "true")]);
    expect(&answer, &[(HEADERS, "x-header-1, x-header-2")]);
    let answer = preflight(client, "/any-without-credentials", origin, "PUT", two).await;
    expect(&answer, &[(ORIGIN, "*"), (METHODS, "PUT"), (CREDENTIALS, "")]);
    expect(&answer, &[(HEADERS, "x-header-1, x-header-2")]);
    assert_eq!(backend.count(), 0, "the gateway answers preflight requests itself");
}

#[tokio::test]
async fn a_response_has_the_fields_of_its_rule_instead_of_the_backends() {
    let backend = Backend::start(PERMISSIVE).await;
    let manifests = manifests(&backend);
    manifests.put("cors.yaml", RULES);
    let gateway = Gateway::start(&manifests).await;
    for (path, origin, allowed, credentials) in [
        ("/cors-1", "https://www.foo.com", "https://www.foo.com", "true"),
        ("/cors-1", "https://www.bar.com", "https://www.bar.com", "true"),
        ("/cors-1", "https://foobar.com", "", ""),
        ("/any-origin", "https://foobar.com:12345", "*", ""),
        ("/any-with-credentials", "https://other.foo.com", "https://other.foo.com", "true"),
        ("/any-without-credentials", "https://other.foo.com", "*", ""),
        // A route without a filter leaves the backend's fields alone.
        ("/public", "https://foobar.com", "*", ""),
    ] {
        let answer = send(&gateway.client, (Method::GET, path), "", &[("origin", origin)]).await;
        expect(
            &answer.clone().expect_status(200),
            &[(ORIGIN, allowed), (CREDENTIALS, credentials)],
        );
        assert!(!answer.headers.contains_key(METHODS), "{path}: {:?}", answer.headers);
        let varies = path == "/cors-1" || path == "/any-with-credentials";
        let fields = answer.headers.get_all("vary").iter().any(|value| value == "Origin");
        assert_eq!(fields, varies, "{path}: {:?}", answer.headers);
    }
    assert_eq!(backend.count(), 7);
}

#[tokio::test]
async fn a_page_can_read_the_errors_of_a_pool_and_a_rule_for_post_has_preflight_requests() {
    let fleet = Fleet::start(1, 1).await;
    let filter = "    filters:\n    - type: CORS\n      cors: {allowOrigins: [\"https://a.test\"], \
                  allowHeaders: [\"*\"]}\n";
    let for_post = route("/", POOL).replace("value: /\n", "value: /\n      method: POST\n");
    fleet.manifests.put("route.yaml", &format!("{for_post}{filter}"));
    let gateway = fleet.gateway().await;
    let answer =
        preflight(&gateway.client, CHAT, "https://a.test", "POST", Some("authorization")).await;
    expect(&answer, &[(ORIGIN, "https://a.test"), (HEADERS, "authorization")]);
    for (body, status) in [("no JSON", 400), (r#"{"messages":[],"n":99999}"#, 400)] {
        let fields = [("origin", "https://a.test")];
        let answer = send(&gateway.client, (Method::POST, CHAT), body, &fields).await;
        expect(&answer.expect_status(status), &[(ORIGIN, "https://a.test")]);
    }
    // Without an origin nothing is allowed, and caches learn that responses differ.
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    expect(&answer, &[(ORIGIN, ""), ("vary", "Origin")]);
}

#[tokio::test]
async fn a_preflight_request_gets_the_policy_of_the_rule_for_the_announced_method() {
    let backend = Backend::start(PERMISSIVE).await;
    let manifests = manifests(&backend);
    manifests.put("cors.yaml", NARROW);
    let gateway = Gateway::start(&manifests).await;
    for (path, origin, method, allowed, methods) in [
        ("/vault/x", "https://evil.test", "DELETE", "", ""),
        ("/vault/x", "https://trusted.test", "DELETE", "https://trusted.test", "DELETE"),
        ("/bare/x", "https://evil.test", "DELETE", "", ""),
        ("/vault/x", "https://evil.test", "PUT", "*", "PUT"),
        ("/other", "https://evil.test", "DELETE", "*", "DELETE"),
    ] {
        let answer = preflight(&gateway.client, path, origin, method, None).await;
        expect(&answer, &[(ORIGIN, allowed), (METHODS, methods)]);
    }
    for (route, count) in [("narrow", 3), ("wide", 2)] {
        eventually("each line names the route of the policy", SOON, async || {
            let log = gateway.log();
            let preflights = log.lines().filter(|line| line.contains("\"preflight\""));
            (preflights.filter(|line| line.contains(&format!("\"{route}\""))).count() == count)
                .then_some(())
        })
        .await;
    }
    let flags = ["--cors-allowed-origins", "https://shop.test"];
    let with_flag = Gateway::start_with(&manifests, &flags).await;
    for (path, origin, allowed) in [
        ("/bare/x", "https://shop.test", "https://shop.test"),
        ("/bare/x", "https://evil.test", ""),
        ("/vault/x", "https://shop.test", ""),
    ] {
        let answer = preflight(&with_flag.client, path, origin, "DELETE", None).await;
        expect(&answer, &[(ORIGIN, allowed)]);
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn the_flag_does_not_widen_a_filter() {
    let backend = Backend::start(PERMISSIVE).await;
    let manifests = manifests(&backend);
    manifests.put("cors.yaml", RULES);
    let flags = ["--cors-allowed-origins", "https://www.shop.test"];
    let gateway = Gateway::start_with(&manifests, &flags).await;
    for (path, origin, allowed) in [
        ("/cors-2", "https://www.shop.test", ""),
        ("/cors-2", "https://www.foo.com", "https://www.foo.com"),
        ("/public", "https://www.shop.test", "https://www.shop.test"),
        ("/public", "https://www.foo.com", ""),
    ] {
        let answer = preflight(&gateway.client, path, origin, "POST", None).await;
        expect(&answer, &[(ORIGIN, allowed)]);
        let answer = send(&gateway.client, (Method::GET, path), "", &[("origin", origin)]).await;
        expect(&answer.expect_status(200), &[(ORIGIN, allowed)]);
    }
}

#[tokio::test]
async fn the_flag_allows_origins_on_every_route_and_on_none() {
    let fleet = Fleet::start(1, 1).await;
    fleet.manifests.put("route.yaml", &route("/v1", POOL));
    let origins = ["--cors-allowed-origins", "https://*.shop.test", "http://localhost:3000"];
    let gateway = fleet.gateway_with(&origins).await;
    for origin in ["https://www.shop.test", "http://localhost:3000"] {
        let answer = preflight(&gateway.client, CHAT, origin, "POST", Some("content-type")).await;
        expect(&answer, &[(ORIGIN, origin), (METHODS, "POST"), (HEADERS, "content-type")]);
        let answer = send(&gateway.client, (Method::GET, "/gone"), "", &[("origin", origin)]).await;
        expect(&answer.expect_status(404), &[(ORIGIN, origin), (EXPOSED, "*")]);
    }
    expect(
        &preflight(&gateway.client, CHAT, "https://shop.test", "POST", None).await,
        &[(ORIGIN, "")],
    );
    let plain = fleet.gateway().await;
    let fields = [("origin", "https://a.test"), ("access-control-request-method", "POST")];
    let answer = send(&plain.client, (Method::OPTIONS, CHAT), "", &fields).await.expect_status(405);
    expect(&answer, &[(ORIGIN, "")]);
}

#[tokio::test]
async fn engines_of_the_command_line_are_open_to_every_page_unless_a_flag_says_otherwise() {
    let fleet = Fleet::start(1, 1).await;
    for (flags, allowed) in [(&[][..], "*"), (&["--cors-allowed-origins", "none"], "")] {
        let (gateway, client, _host) = on_the_command_line(&fleet, flags).await;
        let answer = preflight(&client, CHAT, "https://a.test", "POST", None).await;
        expect(&answer, &[(ORIGIN, allowed)]);
        let fields = [("origin", "https://a.test")];
        let answer = send(&client, (Method::POST, CHAT), "no JSON", &fields).await;
        expect(&answer.expect_status(400), &[(ORIGIN, allowed)]);
        let warnings = gateway.log().matches("every web page may call this gateway").count();
        assert_eq!(warnings, usize::from(allowed == "*"), "{}", gateway.log());
    }
}
