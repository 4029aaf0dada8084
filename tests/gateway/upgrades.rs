//! HTTP/1.1 upgrades: a Service's WebSocket is relayed, and nothing leads past the routes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use router_core::fleet::OPEN_MS;
use router_tests::fleet::SOON;
use router_tests::loopback::Loopback;
use router_tests::manifests::{ENGINE_PORT, Pod};
use router_tests::{Fleet, Gateway, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::CHAT;
use crate::forwarding::service_with;

/// The path of the Service that [`service_with`] makes.
const SERVICE: &str = "/v1/embeddings";
/// The field of a Service's port by which the Gateway API names WebSocket backends.
const WEBSOCKET: &str = "appProtocol: kubernetes.io/ws";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: key\r\n\r\nfirst ";

/// A backend that agrees to every upgrade, and then sends back what it gets.
struct Backend {
    address: Loopback,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    async fn start() -> Backend {
        Backend::at(Loopback::claim()).await
    }

    async fn at(address: Loopback) -> Backend {
        let listener = TcpListener::bind(address.port(ENGINE_PORT)).await.expect("a port");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&record)));
            }
        });
        Backend { address, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }
}

async fn serve(mut socket: TcpStream, heads: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    loop {
        let Some(head) = read_head(&mut socket).await else { return Ok(()) };
        let head = head.to_lowercase();
        let upgrades = head.contains("\r\nupgrade: ") && head.contains("connection: upgrade");
        let refuses = head.contains("x-refuse");
        heads.lock().expect("no panic").push(head);
        if upgrades && !refuses {
            break;
        }
        let status = if refuses { "403 Forbidden" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nno");
        socket.write_all(answer.as_bytes()).await?;
    }
    // The first bytes of the new protocol come with the head.
    socket.write_all(AGREED.as_bytes()).await?;
    let (mut read, mut write) = socket.split();
    tokio::io::copy(&mut read, &mut write).await.map(|_| ())
}

/// Reads up to the blank line, byte by byte: what follows is another protocol's.
async fn read_head(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

async fn start(flags: &[&str]) -> (Backend, Fleet, Gateway) {
    let backend = Backend::start().await;
    let fleet = Fleet::start(1, 1).await;
    service_with(&fleet, &[backend.address.ip()], WEBSOCKET);
    let gateway = fleet.gateway_with(flags).await;
    (backend, fleet, gateway)
}

fn request(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\n{fields}\r\n")
}

fn handshake() -> String {
    request(&format!("GET {SERVICE}"), "Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n")
}

/// Sends bytes and reads the head of the answer.
async fn exchange(gateway: &Gateway, sent: &str) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(sent.as_bytes()).await.expect("written");
    let head = timeout(SOON, read_head(&mut socket)).await.expect("in time").expect("a head");
    (socket, head.to_lowercase())
}

async fn expect(socket: &mut TcpStream, text: &str) {
    let mut read = vec![0; text.len()];
    timeout(SOON, socket.read_exact(&mut read)).await.expect("in time").expect("open");
    assert_eq!(String::from_utf8_lossy(&read), text);
}

async fn expect_end(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    _ = timeout(SOON, socket.read_to_end(&mut rest)).await.expect("the connection ends");
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

async fn logged(gateway: &Gateway, parts: &[&str]) {
    eventually(&format!("a line with {parts:?}"), SOON, async || {
        let log = gateway.log();
        log.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_websocket_is_relayed_both_ways_until_it_is_closed() {
    let (backend, _fleet, gateway) = start(&[]).await;
    let (mut socket, head) = exchange(&gateway, &format!("{}early ", handshake())).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for field in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: key"] {
        assert!(head.contains(field), "{field}: {head}");
    }
    expect(&mut socket, "first early ").await;
    let long = "x".repeat(300_000);
    let (mut read, mut write) = socket.into_split();
    let sent = async { write.write_all(long.as_bytes()).await.expect("open") };
    let mut echoed = vec![0; long.len()];
    let received = async { read.read_exact(&mut echoed).await.expect("open") };
    timeout(SOON, async { tokio::join!(sent, received) }).await.expect("in time");
    assert!(echoed == long.as_bytes());
    assert_eq!(gateway.metric("pd_router_requests_in_flight", &[]).await, 1.0);
    drop((read, write));
    logged(&gateway, &["\"status\":101", "\"reason\":\"ok\"", "\"endpoint\":\"service\""]).await;
    assert_eq!(gateway.metric("pd_router_requests_in_flight", &[]).await, 0.0);
    let head = backend.heads().remove(0);
    assert!(head.contains("x-forwarded-for: ") && head.contains("sec-websocket-key: x"), "{head}");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let (backend, _fleet, gateway) = start(&[]).await;
    let refused = handshake().replace("Sec-WebSocket-Key", "X-Refuse: 1\r\nSec-WebSocket-Key");
    let (mut socket, head) = exchange(&gateway, &refused).await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    expect(&mut socket, "no").await;
    // The connection still speaks HTTP.
    socket.write_all(handshake().as_bytes()).await.expect("open");
    let head = timeout(SOON, read_head(&mut socket)).await.expect("in time").expect("a head");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    expect(&mut socket, "first ").await;
    assert_eq!(backend.heads().len(), 2);
}

#[tokio::test]
async fn no_upgrade_leads_past_the_routes() {
    let (backend, _fleet, gateway) = start(&[]).await;
    for (line, fields) in [
        ("GET", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        ("GET", "Upgrade: HTTP/2.0, TLS/1.2\r\n"),
        ("POST", "Upgrade: websocket\r\nContent-Length: 2\r\n"),
    ] {
        let mut sent = request(&format!("{line} {SERVICE}"), fields);
        if line == "POST" {
            sent.push_str("{}");
        }
        let (_socket, head) = exchange(&gateway, &sent).await;
        assert!(head.starts_with("http/1.1 200 "), "{fields}: {head}");
        let last = backend.heads().pop().expect("a request has arrived");
        assert!(!last.contains("upgrade"), "{fields}: {last}");
    }
    let sent = request(&format!("GET {SERVICE}"), "Upgrade: h2c, WebSocket\r\n");
    let (_socket, head) = exchange(&gateway, &sent).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let last = backend.heads().pop().expect("a request has arrived");
    assert!(last.contains("\r\nupgrade: websocket\r\n"), "{last}");
}

#[tokio::test]
async fn a_pool_serves_no_websocket_and_ignores_other_upgrades() {
    let (_backend, fleet, gateway) = start(&[]).await;
    for path in ["/v1/realtime", CHAT] {
        let sent = request(&format!("GET {path}"), "Upgrade: websocket\r\n");
        let (_socket, head) = exchange(&gateway, &sent).await;
        assert!(head.starts_with("http/1.1 501 "), "{path}: {head}");
        assert!(head.contains("x-pd-router-reason: unsupported"), "{path}: {head}");
    }
    let sent = request("GET /v1/models/%2Fmodels%2FQwen3-32B", "Upgrade: foo\r\n");
    let (_socket, head) = exchange(&gateway, &sent).await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let received = fleet.engines().flat_map(|engine| engine.received());
    let received: Vec<_> =
        received.filter(|request| request.path().starts_with("/v1/models/")).collect();
    assert_eq!(received.len(), 1);
    assert!(!received[0].headers.contains_key("upgrade"), "{received:?}");
}

#[tokio::test]
async fn an_engine_that_agrees_to_an_upgrade_without_being_asked_is_a_502() {
    let address = Loopback::claim();
    let listener = TcpListener::bind(address.port(ENGINE_PORT)).await.expect("a port");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                while read_head(&mut socket).await.is_some() {
                    _ = socket.write_all(AGREED.as_bytes()).await;
                }
            });
        }
    });
    let fleet = Fleet::start_single(0).await;
    fleet.manifests.put_pod(&Pod::new("eager", "unified", address.ip()));
    let gateway = fleet.gateway().await;
    let (_socket, head) = exchange(&gateway, &request("GET /model_info", "Upgrade: foo\r\n")).await;
    assert!(head.starts_with("http/1.1 502 "), "{head}");
    assert!(head.contains("x-pd-router-reason: engine_malformed"), "{head}");
}

#[tokio::test]
async fn a_tunnel_ends_at_its_limits() {
    for (flags, reason) in [
        (["--stream-idle-timeout", "300ms"], "\"reason\":\"engine_timeout\""),
        (["--request-timeout", "300ms"], "\"reason\":\"request_timeout\""),
    ] {
        let (_backend, _fleet, gateway) = start(&flags).await;
        let (mut socket, _) = exchange(&gateway, &handshake()).await;
        expect(&mut socket, "first ").await;
        expect_end(&mut socket).await;
        logged(&gateway, &["\"status\":101", reason]).await;
    }
}

#[tokio::test]
async fn a_tunnel_counts_as_a_connection_and_ends_at_the_drain_timeout() {
    let (_backend, _fleet, mut gateway) = start(&["--drain-timeout", "500ms"]).await;
    let (mut socket, _) = exchange(&gateway, &handshake()).await;
    expect(&mut socket, "first ").await;
    assert_eq!(gateway.metric("pd_router_connections", &[]).await, 1.0);
    gateway.terminate();
    socket.write_all(b"still").await.expect("open");
    expect(&mut socket, "still").await;
    expect_end(&mut socket).await;
    gateway.ended(Duration::from_secs(10)).await;
    logged(&gateway, &["\"status\":101", "\"reason\":\"draining\""]).await;
}

#[tokio::test]
async fn a_backend_that_breaks_a_tunnel_ends_it() {
    let address = Loopback::claim();
    let listener = TcpListener::bind(address.port(ENGINE_PORT)).await.expect("a port");
    let fleet = Fleet::start(1, 1).await;
    service_with(&fleet, &[address.ip()], WEBSOCKET);
    let gateway = fleet.gateway().await;
    let sent = handshake();
    let (client, backend) = tokio::join!(exchange(&gateway, &sent), async {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        read_head(&mut socket).await.expect("a head");
        socket.write_all(AGREED.as_bytes()).await.expect("open");
        socket
    });
    let mut client = client.0;
    expect(&mut client, "first ").await;
    // The end is RST and not FIN, after which the client could go on sending.
    backend.set_zero_linger().expect("an open socket");
    drop(backend);
    // The client's connection is still open.
    expect_end(&mut client).await;
    logged(&gateway, &["\"status\":101", "\"reason\":\"engine_broken\""]).await;
}

#[tokio::test]
async fn a_client_that_breaks_a_tunnel_ends_it() {
    let (_backend, _fleet, gateway) = start(&[]).await;
    let (mut socket, _) = exchange(&gateway, &handshake()).await;
    expect(&mut socket, "first ").await;
    socket.set_zero_linger().expect("an open socket");
    drop(socket);
    logged(&gateway, &["\"status\":101", "\"reason\":\"client_gone\""]).await;
}

#[tokio::test]
async fn an_endpoint_that_is_tried_with_a_websocket_is_back_while_it_lasts() {
    let address = Loopback::claim();
    let fleet = Fleet::start(1, 1).await;
    service_with(&fleet, &[address.ip()], WEBSOCKET);
    let gateway = fleet.gateway().await;
    let (_socket, head) = exchange(&gateway, &handshake()).await;
    assert!(head.starts_with("http/1.1 502 "), "{head}");
    let at = format!("\"address\":\"{}", address.ip());
    let changed = async |after: &str| {
        let after = format!("\"after\":\"{after}\"");
        logged(&gateway, &["worker health changed", &at, &after]).await;
    };
    changed("Failing").await;
    let _backend = Backend::at(address).await;
    // No request before the time out has passed: its answer would not count.
    tokio::time::sleep(Duration::from_millis(OPEN_MS + 100)).await;
    let (mut socket, _) = exchange(&gateway, &handshake()).await;
    expect(&mut socket, "first ").await;
    changed("HalfOpen").await;
    changed("Up").await;
}
