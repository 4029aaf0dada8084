//! What a gateway between a client and a backend owes to both: normal paths, valid hosts, honest
//! fields, one length.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use router_tests::loopback::Loopback;
use router_tests::manifests::{ENGINE_PORT, Manifests, gateway};
use router_tests::{Gateway, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A backend that records the head of each request and sends the same bytes as its answer.
pub(crate) struct Backend {
    address: Loopback,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    pub(crate) async fn start(answer: &'static str) -> Backend {
        let address = Loopback::claim();
        let listener = TcpListener::bind(address.port(ENGINE_PORT)).await.expect("a port");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let record = Arc::clone(&record);
                tokio::spawn(async move {
                    let mut text = String::new();
                    let mut piece = [0; 4096];
                    loop {
                        match socket.read(&mut piece).await {
                            Ok(0) | Err(_) => return,
                            Ok(n) => text.push_str(&String::from_utf8_lossy(&piece[..n])),
                        }
                        if text.contains("\r\n\r\n") {
                            record.lock().expect("no panic").push(std::mem::take(&mut text));
                            _ = socket.write_all(answer.as_bytes()).await;
                        }
                    }
                });
            }
        });
        Backend { address, heads }
    }

    /// Number of requests that have arrived.
    pub(crate) fn count(&self) -> usize {
        self.heads.lock().expect("no panic").len()
    }

    /// The last head that has arrived, in lower case.
    fn last(&self) -> String {
        self.heads
            .lock()
            .expect("no panic")
            .last()
            .cloned()
            .expect("a request has arrived")
            .to_lowercase()
    }
}

/// A route to the backend, and one below `/admin` with a filter.
pub(crate) fn manifests(backend: &Backend) -> Manifests {
    let manifests = Manifests::new();
    manifests.put("gateway.yaml", &gateway());
    let ip = backend.address.ip();
    manifests.put(
        "service.yaml",
        &format!(
            "apiVersion: v1
kind: Service
metadata: {{name: plain}}
spec:
  ports: [{{name: http, port: 80, targetPort: {ENGINE_PORT}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: plain-1, labels: {{kubernetes.io/service-name: plain}}}}
addressType: IPv4
ports: [{{name: http, port: {ENGINE_PORT}}}]
endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: guarded}}
spec:
  parentRefs: [{{name: inference-gateway}}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: /public}}}}]
    backendRefs: [{{name: plain, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /admin}}}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: x-tenant, value: guest}}]}}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{set: [{{name: x-frame-options, value: deny}}]}}
    backendRefs: [{{name: plain, port: 80}}]
"
        ),
    );
    manifests
}

async fn start(answer: &'static str, flags: &[&str]) -> (Backend, Gateway, Manifests) {
    let backend = Backend::start(answer).await;
    let manifests = manifests(&backend);
    let gateway = Gateway::start_with(&manifests, flags).await;
    (backend, gateway, manifests)
}

/// Sends bytes and reads the answer to the connection's end.
async fn ask(gateway: &Gateway, request: impl AsRef<[u8]>) -> String {
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(request.as_ref()).await.expect("sending");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut answer));
    _ = read.await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n{fields}\r\n")
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn a_connection_header_cannot_undo_a_filter() {
    let (backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let fields = "x-tenant: root\r\nconnection: x-tenant, x-forwarded-proto, host, x-mine\r\n\
                  x-mine: 1\r\n";
    assert_eq!(status(&ask(&gateway, get("/admin/x", fields)).await), "200");
    let head = backend.last();
    assert!(head.contains("\r\nx-tenant: guest\r\n"), "{head}");
    assert!(head.contains("\r\nhost: shop.example\r\n"), "{head}");
    assert!(head.contains("\r\nx-forwarded-proto: http\r\n"), "{head}");
    assert!(!head.contains("x-mine"), "{head}");
}

#[tokio::test]
async fn dot_segments_do_not_change_the_rule() {
    let (backend, gateway, _manifests) = start(PLAIN, &[]).await;
    for path in [
        "/public/../admin/x",
        "/public/%2e%2e/admin/x",
        "/public\\..\\admin/x",
        "/public/..;/admin/x",
    ] {
        assert_eq!(status(&ask(&gateway, get(path, "")).await), "200", "{path}");
        let head = backend.last();
        assert!(head.starts_with("get /admin/x http"), "{path}: {head}");
        assert!(head.contains("x-tenant: guest"), "{path}: {head}");
    }
    // A path is unescaped once: the backend sees no escape that the rule was not chosen by.
    let path = "/public/%%32e%%32e/admin/x";
    assert_eq!(status(&ask(&gateway, get(path, "")).await), "200", "{path}");
    let head = backend.last();
    assert!(head.starts_with("get /public/%252e%252e/admin/x http"), "{path}: {head}");
    for path in ["/public/..%2fadmin/x", "/public%5C..%5cadmin/x", "/../admin/x"] {
        let answer = ask(&gateway, get(path, "")).await;
        assert_eq!(status(&answer), "400", "{path}: {answer}");
        assert!(answer.contains("x-pd-router-reason: bad_path"), "{answer}");
    }
}

#[tokio::test]
async fn escaped_slashes_are_unescaped_if_the_flag_says_so() {
    let flags = ["--escaped-slashes", "unescape", "--merge-slashes"];
    let (backend, gateway, _manifests) = start(PLAIN, &flags).await;
    for path in ["/public/..%2fadmin/x?a=%2f", "//admin//x?a=%2f"] {
        assert_eq!(status(&ask(&gateway, get(path, "")).await), "200", "{path}");
        assert!(backend.last().starts_with("get /admin/x?a=%2f http"), "{}", backend.last());
    }
}

#[tokio::test]
async fn a_client_cannot_forge_where_it_comes_from() {
    let (backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let fields = "x-forwarded-for: 192.0.2.1\r\nforwarded: for=192.0.2.1\r\n\
                  x-forwarded-proto: https\r\nvia: 1.1 edge\r\ncookie: a=1\r\ncookie: b=2\r\n";
    ask(&gateway, get("/public/x", fields)).await;
    let head = backend.last();
    for expected in [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example",
        "via: 1.1 edge",
        "via: 1.1 pd-router",
        "cookie: a=1; b=2",
    ] {
        assert!(head.contains(&format!("\r\n{expected}\r\n")), "{expected} is missing: {head}");
    }
    assert!(!head.contains("192.0.2.1"), "{head}");
}

#[tokio::test]
async fn the_fields_of_a_trusted_proxy_are_kept() {
    let flags = ["--trusted-proxies", "10.0.0.0/8,127.0.0.0/8"];
    let (backend, gateway, _manifests) = start(PLAIN, &flags).await;
    let fields = "x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\n";
    ask(&gateway, get("/public/x", fields)).await;
    let head = backend.last();
    assert!(head.contains("x-forwarded-for: 192.0.2.1, 127.0.0.1\r\n"), "{head}");
    assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
}

#[tokio::test]
async fn a_host_that_is_none_is_refused() {
    let (backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let too_long = format!("{}a", "a.".repeat(200));
    for host in [
        "good.example:x@evil.example",
        "good.example:80:90",
        "user@good.example",
        "a/b",
        "",
        ".",
        "h..x",
        &too_long,
    ] {
        let request = format!("GET /public HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = ask(&gateway, request).await;
        assert_eq!(status(&answer), "400", "{host}: {answer}");
        assert!(answer.contains("x-pd-router-reason: bad_host"), "{host}: {answer}");
    }
    // The host of the line is the one that counts, and the backend sees no other (RFC 9112, section 3.2.2).
    for field in ["", "admin.internal"] {
        let absolute = format!(
            "GET http://shop.example/public HTTP/1.1\r\nhost: {field}\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(status(&ask(&gateway, absolute).await), "200");
        assert!(backend.last().contains("\r\nhost: shop.example\r\n"), "{}", backend.last());
    }
    // HTTP/1.0 has no host (RFC 9112, section 3.2).
    assert_eq!(status(&ask(&gateway, "GET /public HTTP/1.0\r\n\r\n").await), "200");
    backend.heads.lock().expect("no panic").clear();
    let mut sender = crate::http2::connect(&gateway, 65_535).await;
    let relative = http::Request::get("/public").body(Default::default()).expect("a request");
    let answer = crate::http2::send(&mut sender, relative).await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.headers()["x-pd-router-reason"], "bad_host");
    assert!(backend.heads.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn connect_and_trace_are_not_served() {
    let (backend, gateway, _manifests) = start(PLAIN, &[]).await;
    for line in ["TRACE /public/x", "CONNECT shop.example:80"] {
        let request =
            format!("{line} HTTP/1.1\r\nhost: shop.example:80\r\nconnection: close\r\n\r\n");
        let answer = ask(&gateway, request).await;
        assert_eq!(status(&answer), "501", "{line}: {answer}");
    }
    assert!(backend.heads.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn a_transfer_coding_beside_chunked_is_a_501_and_closes() {
    let (backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let chunks = "2\r\nhi\r\n0\r\n\r\n";
    for coding in [
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
    ] {
        let request = format!("POST /public/x HTTP/1.1\r\nhost: a\r\n{coding}\r\n\r\n{chunks}");
        let answer = ask(&gateway, request).await;
        assert_eq!(status(&answer), "501", "{coding}: {answer}");
        assert!(answer.contains("x-pd-router-reason: transfer_coding"), "{coding}: {answer}");
        assert!(answer.contains("connection: close"), "{coding}: {answer}");
    }
    assert!(backend.heads.lock().expect("no panic").is_empty());
    let fields = "host: a\r\nconnection: close\r\ntransfer-encoding: Chunked";
    let answer = ask(&gateway, format!("POST /public/x HTTP/1.1\r\n{fields}\r\n\r\n{chunks}"));
    assert_eq!(status(&answer.await), "200");
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_logged_and_counted() {
    let (_backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let long = format!("GET /x HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    for (head, code, reason) in [
        ("GET /x HTTP/1.1\r\nhost: h\r\nx : y\r\n\r\n", "400", "bad_head"),
        ("nonsense\r\n\r\n", "400", "bad_head"),
        (long.as_str(), "431", "head_too_large"),
    ] {
        let labels = [&*format!("code=\"{code}\""), &*format!("reason=\"{reason}\"")];
        let before = gateway.metric("pd_router_requests_total", &labels).await;
        assert_eq!(status(&ask(&gateway, head).await), code, "{reason}");
        eventually("it is counted", Duration::from_secs(10), async || {
            let after = gateway.metric("pd_router_requests_total", &labels).await;
            (after == before + 1.0).then_some(())
        })
        .await;
        // It is logged by another thread.
        let line = eventually("it is logged", Duration::from_secs(10), async || {
            let log = gateway.log();
            let of_reason = format!("\"reason\":\"{reason}\"");
            log.lines().find(|line| line.contains(&of_reason)).map(str::to_owned)
        });
        let line = line.await;
        assert!(line.contains("\"peer\""), "{line}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_is_not_passed_on() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\
                  x-pd-router-reason: forged\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
    let (_backend, gateway, _manifests) = start(answer, &[]).await;
    let answer = gateway.client.get("/public/x").await.expect_status(200);
    assert_eq!(answer.text(), "whole");
    assert_eq!(answer.header("content-length"), "");
    assert_eq!(answer.header("x-pd-router-reason"), "");
}

#[tokio::test]
async fn an_unrequested_switch_of_protocols_is_a_502() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let (_backend, gateway, _manifests) = start(answer, &[]).await;
    let fields = "upgrade: x\r\n";
    let answer = ask(&gateway, get("/public/x", fields)).await;
    assert_eq!(status(&answer), "502", "{answer}");
}

#[tokio::test]
async fn a_filter_changes_the_gateways_own_responses_too() {
    let (backend, gateway, _manifests) = start("no HTTP at all\r\n\r\n", &[]).await;
    let answer = ask(&gateway, get("/admin/x", "")).await;
    assert_eq!(status(&answer), "502", "{answer}");
    assert!(answer.contains("x-frame-options: deny"), "{answer}");
    drop(backend);
}

#[tokio::test]
async fn a_request_id_that_is_too_long_is_replaced() {
    let (_backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let id = "i".repeat(20_000);
    let answer = ask(&gateway, get("/public/x", &format!("x-request-id: {id}\r\n"))).await;
    assert_eq!(status(&answer), "200");
    assert!(!answer.contains("iiii"), "{answer}");
    let line = eventually("the request is logged", Duration::from_secs(5), async || {
        gateway.log().lines().find(|line| line.contains("\"service\"")).map(str::to_owned)
    })
    .await;
    assert!(line.len() < 2000, "{line}");
}

/// Sends a head, its body a moment later, and returns the socket.
async fn send_late_body(gateway: &Gateway, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    let length = body.len();
    let head = format!(
        "POST /no-route HTTP/1.1\r\nhost: shop.example\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("sending a head");
    // The refusal is sent before the body comes, as over a real network.
    tokio::time::sleep(Duration::from_millis(2)).await;
    socket.write_all(body).await.expect("the gateway reads on");
    socket
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut piece = [0; 4096];
    // The body of an error is one JSON object.
    while !text.ends_with('}') {
        let read = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut piece));
        match read.await.expect("an answer").expect("no reset") {
            0 => break,
            n => text.push_str(&String::from_utf8_lossy(&piece[..n])),
        }
    }
    text
}

#[tokio::test]
async fn an_early_refusal_of_a_long_body_says_close_and_is_read() {
    let (_backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let body = vec![b'x'; 20 << 20];
    let mut socket = send_late_body(&gateway, &body).await;
    let answer = read_head(&mut socket).await;
    assert_eq!(status(&answer), "404", "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn an_early_refusal_of_a_short_body_keeps_the_connection() {
    let (_backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let mut socket = send_late_body(&gateway, b"hello").await;
    let answer = read_head(&mut socket).await;
    assert_eq!(status(&answer), "404", "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    socket.write_all(get("/no-route", "").as_bytes()).await.expect("the connection is kept");
    assert_eq!(status(&read_head(&mut socket).await), "404");
}

#[tokio::test]
async fn an_early_refusal_does_not_ask_for_the_body() {
    let (_backend, gateway, _manifests) = start(PLAIN, &[]).await;
    let head = "POST /no-route HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 5\r\n\
                expect: 100-continue\r\n\r\n";
    let answer = ask(&gateway, head).await;
    assert_eq!(status(&answer), "404", "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_clients_malformed_chunk_is_its_own_fault() {
    let (_backend, gateway, _manifests) = start("", &[]).await;
    let request = "POST /public/x HTTP/1.1\r\nhost: shop.example\r\n\
                   transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n";
    let answer = ask(&gateway, request).await;
    assert_eq!(status(&answer), "400", "{answer}");
    assert!(answer.contains("x-pd-router-reason: body_broken"), "{answer}");
    assert!(!answer.contains("retry-after"), "{answer}");
}

/// Number of bytes that a client has written and the kernel of this end has not taken.
fn unsent(socket: &TcpStream) -> u64 {
    let text = |address: std::net::SocketAddr| match address {
        std::net::SocketAddr::V4(address) => {
            format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port())
        }
        std::net::SocketAddr::V6(_) => unreachable!("loopback addresses of tests are IPv4"),
    };
    let client = text(socket.peer_addr().expect("connected"));
    let ends = [client, text(socket.local_addr().expect("connected"))].join(" ");
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    let line = sockets.lines().find(|line| line.contains(&ends)).expect("the client's socket");
    let queues = line.split_whitespace().nth(4).expect("queues");
    u64::from_str_radix(&queues[..8], 16).expect("a number")
}

/// Reads the head of one request of each connection and answers it, so that its body fills the connection. When
/// the next request was sent behind it, the connection is closed: nothing of that request has come.
async fn close_unread(address: &Loopback) -> Arc<Mutex<Vec<String>>> {
    let listener = TcpSocket::new_v4().expect("a socket");
    listener.set_recv_buffer_size(4096).expect("a small buffer");
    listener.bind(address.port(ENGINE_PORT)).expect("a port");
    let listener = listener.listen(16).expect("listening");
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = Arc::clone(&lines);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let record = Arc::clone(&record);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if !matches!(socket.read_buf(&mut head).await, Ok(1..)) {
                        return;
                    }
                }
                let line = String::from_utf8_lossy(&head).lines().next().map(str::to_owned);
                record.lock().expect("no panic").extend(line);
                socket.write_all(PLAIN.as_bytes()).await.expect("an answer");
                let before = unsent(&socket);
                while unsent(&socket) <= before {
                    tokio::task::yield_now().await;
                }
                socket.shutdown().await.expect("closing");
                std::future::pending::<()>().await;
            });
        }
    });
    lines
}

#[tokio::test]
async fn a_request_that_a_closed_connection_took_with_it_is_sent_again_if_it_is_short() {
    let backend = Backend { address: Loopback::claim(), heads: Arc::default() };
    let lines = close_unread(&backend.address).await;
    let manifests = manifests(&backend);
    let gateway = Gateway::start(&manifests).await;
    let body = |bytes: usize| serde_json::json!({"padding": "x".repeat(bytes)});
    for number in 0..4 {
        gateway.client.post(&format!("/public/{number}"), &body(12_000)).await.expect_status(200);
    }
    let read: Vec<String> = (0..4).map(|n| format!("POST /public/{n} HTTP/1.1")).collect();
    assert_eq!(*lines.lock().expect("no panic"), read, "each is read once");
    // Of a longer one not enough is kept.
    let long = gateway.client.post("/public/long", &body(60_000)).await;
    assert_eq!(long.status, 502, "{}", long.text());
    assert_eq!(lines.lock().expect("no panic").len(), 4);
    let fleet = gateway.fleet().await.to_string();
    assert!(!fleet.contains("Failing"), "the endpoint is not at fault: {fleet}");
}
