//! Every wait has a limit, whatever the request is passed to.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use router_tests::client::End;
use router_tests::fleet::SOON;
use router_tests::loopback::Loopback;
use router_tests::{Fleet, Gateway, eventually};
use serde_json::json;
use sglang_sim::{Action, Script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::forwarding::{service, service_with};
use crate::{CHAT, chat, streamed};

/// Served by one worker, and by a Service where a test makes one.
const ONE_WORKER: &str = "/tokenize";
const SERVICE: &str = "/v1/embeddings";

/// Number of broken answers in a row after which an endpoint is left for a while.
const ERRORS_TO_LEAVE: u32 = 5;
/// Number of requests of which two endpoints get that many each, but for one time in ten million.
const MAX_REQUESTS: u32 = 40;

/// In the log where an endpoint is left for a while.
const LEFT: &str = "\"after\":\"Failing\"";

/// Answers each connection with the beginning of a response, and keeps it open or closes it.
async fn serve_beginnings(backend: &Loopback, keeps_open: bool) {
    let listener = TcpListener::bind(backend.port(8000)).await.expect("a port");
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            // All of it: closing with unread bytes would reset the connection, answer included.
            while !request.contains(&b'}') {
                assert_ne!(socket.read_buf(&mut request).await.expect("a request"), 0);
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe beginning";
            socket.write_all(answer).await.expect("written");
            if keeps_open {
                open.push(socket);
            }
        }
    });
}

/// The beginning of a request whose body has 100 bytes, of which one is sent.
fn slow_body(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: g\r\ncontent-length: 100\r\n\r\n{{")
}

/// Sends bytes and reads the head of the answer.
async fn exchange(gateway: &Gateway, request: &str) -> String {
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    let head = |answer: &[u8]| answer.windows(4).any(|end| end == b"\r\n\r\n");
    let read = async {
        while !head(&answer) {
            if socket.read_buf(&mut answer).await.expect("read") == 0 {
                break;
            }
        }
    };
    timeout(SOON, read).await.expect("no answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_that_stops_on_its_way_to_a_worker_or_a_service_is_a_408() {
    let fleet = Fleet::start_single(1).await;
    service(&fleet, &[fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway_with(&["--body-timeout", "300ms"]).await;
    for path in [ONE_WORKER, SERVICE] {
        let answer = exchange(&gateway, &slow_body(path)).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{path}: {answer}");
        assert!(answer.contains("body_late"), "{path}: {answer}");
    }
    let usage = gateway.metric("pd_router_worker_requests", &[]).await;
    assert_eq!(usage, 0.0, "a lease was kept");
}

#[tokio::test]
async fn the_time_in_which_a_service_waits_for_its_client_is_not_the_services() {
    let fleet = Fleet::start_single(1).await;
    service(&fleet, &[fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway_with(&["--first-byte-timeout", "300ms"]).await;
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    let body = "{\"input\": \"hello\"}";
    let head = "host: g\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length";
    let head = format!("POST {SERVICE} HTTP/1.1\r\n{head}: {}\r\n\r\n", body.len());
    socket.write_all(head.as_bytes()).await.expect("written");
    for part in body.as_bytes().chunks(2) {
        sleep(Duration::from_millis(80)).await;
        socket.write_all(part).await.expect("written");
    }
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn clients_that_send_until_the_deadline_get_no_endpoint_left() {
    let fleet = Fleet::start_single(1).await;
    service(&fleet, &[fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway_with(&["--request-timeout", "300ms"]).await;
    // More than the errors in a row after which an endpoint is left.
    for _ in 0..6 {
        let answer = exchange(&gateway, &slow_body(SERVICE)).await;
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    }
    assert!(!gateway.log().contains(LEFT), "{}", gateway.log());
}

#[tokio::test]
async fn clients_that_send_too_much_after_the_head_get_no_endpoint_left() {
    let fleet = Fleet::start_single(1).await;
    let backend = Loopback::claim();
    serve_beginnings(&backend, true).await;
    service(&fleet, &[backend.ip()]);
    let gateway = fleet.gateway_with(&["--max-body", "10"]).await;
    let head = format!("POST {SERVICE} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..6 {
        let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
        socket.write_all(format!("{head}1\r\n}}\r\n").as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        while !answer.ends_with(b"the beginning") {
            assert_ne!(socket.read_buf(&mut answer).await.expect("an answer"), 0);
        }
        socket.write_all(b"b\r\n01234567890\r\n").await.expect("written");
        // The end, or a reset.
        let _ = timeout(SOON, socket.read_to_end(&mut answer)).await.expect("it is cut");
    }
    let is_logged = || gateway.log().matches("\"reason\":\"body_too_large\"").count() == 6;
    eventually("the requests are logged", SOON, async || is_logged().then_some(())).await;
    assert!(!gateway.log().contains(LEFT), "{}", gateway.log());
}

#[tokio::test]
async fn a_worker_or_a_service_that_does_not_answer_is_a_504() {
    let fleet = Fleet::start_single(1).await;
    service(&fleet, &[fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway_with(&["--first-byte-timeout", "300ms"]).await;
    for path in [ONE_WORKER, SERVICE] {
        fleet.unified[0].script(Script::once(Action::HangHead).on(path));
        let answer = gateway.client.post(path, &json!({"input": "hi", "prompt": "hi"})).await;
        assert_eq!(answer.status, 504, "{path}: {}", answer.text());
        assert_eq!(answer.header("x-pd-router-reason"), "engine_timeout", "{path}");
    }
}

#[tokio::test]
async fn a_worker_that_freezes_is_left_whatever_it_serves() {
    let fleet = Fleet::start_single(1).await;
    let flags = ["--probe-interval", "100ms", "--probe-timeout", "200ms"];
    let flags = [&flags[..], &["--unresponsive-timeout", "200ms"]].concat();
    let gateway = fleet.gateway_with(&flags).await;
    fleet.unified[0].script(Script::once(Action::Freeze { ms: None }).on(ONE_WORKER));
    let answer = gateway.client.post(ONE_WORKER, &json!({"prompt": "hi"})).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("x-pd-router-reason"), "engine_silent");
    assert!(answer.took < SOON, "{:?}", answer.took);
}

#[tokio::test]
async fn an_answer_of_a_service_that_stops_is_cut() {
    let fleet = Fleet::start_single(1).await;
    let backend = Loopback::claim();
    serve_beginnings(&backend, true).await;
    service(&fleet, &[backend.ip()]);
    let gateway = fleet.gateway_with(&["--stream-idle-timeout", "300ms"]).await;
    let mut answer = gateway.client.open(SERVICE, &json!({"input": "hi"})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.piece().await.expect("a first part"), "the beginning");
    let end = timeout(SOON, answer.piece()).await.expect("it is kept open");
    assert!(end.is_err());
    eventually("the reason is logged", SOON, async || {
        gateway.log().contains("\"reason\":\"engine_timeout\"").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_of_a_service_that_breaks_its_answers_is_left_for_a_while() {
    let fleet = Fleet::start_single(1).await;
    let backend = Loopback::claim();
    serve_beginnings(&backend, false).await;
    service(&fleet, &[backend.ip(), fleet.unified[0].address.ip()]);
    let gateway = fleet.gateway().await;
    // Each endpoint gets about half of the requests. How long they take does not matter.
    let mut broken = 0;
    for _ in 0..MAX_REQUESTS {
        let mut answer = gateway.client.open(SERVICE, &json!({"input": "hi"})).await;
        assert_eq!(answer.status, 200);
        let end = loop {
            if let Err(end) = answer.piece().await {
                break end;
            }
        };
        broken += u32::from(end == End::Cut);
        if broken == ERRORS_TO_LEAVE {
            break;
        }
    }
    assert_eq!(broken, ERRORS_TO_LEAVE, "of {MAX_REQUESTS} requests");
    for text in [LEFT, "\"reason\":\"engine_broken\""] {
        eventually("the log says so", SOON, async || gateway.log().contains(text).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn a_prefill_that_hangs_is_blamed_for_the_timeout_of_both() {
    let fleet = Fleet::start(1, 1).await;
    let flags = ["--prefill-timeout", "500ms", "--first-event-timeout", "500ms"];
    let gateway = fleet.gateway_with(&flags).await;
    fleet.prefill[0].always(Action::HangHead);
    for _ in 0..3 {
        let answer = gateway.client.open(CHAT, &streamed("hi")).await.answer().await;
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.header("x-pd-router-reason"), "prefill_timeout");
    }
    let metric = "pd_router_leg_requests_total";
    // Each once, although both timers end at once.
    assert_eq!(gateway.metric(metric, &["outcome=\"prefill_timeout\""]).await, 3.0);
    assert_eq!(gateway.metric(metric, &["outcome=\"decode_timeout\""]).await, 0.0);
}

#[tokio::test]
async fn a_decode_that_hangs_is_blamed_if_its_prefill_works() {
    let fleet = Fleet::start(1, 2).await;
    let flags = ["--policy", "round_robin", "--prefill-timeout", "2s"];
    let gateway = fleet.gateway_with(&flags).await;
    fleet.decode.iter().for_each(|decode| decode.once(Action::HangHead));
    let client = gateway.client;
    let first = tokio::spawn(async move { client.post(CHAT, &chat("hi")).await });
    let hung = eventually("a decode has the request", SOON, async || {
        fleet.decode.iter().position(|decode| !decode.legs().is_empty())
    })
    .await;
    fleet.decode[1 - hung].heal();
    // Prefill answers this one while it waits for the other decode.
    gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
    let answer = first.await.expect("no panic");
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert_eq!(answer.header("x-pd-router-reason"), "decode_timeout");
    let metric = "pd_router_leg_requests_total";
    // It was prefill's timer that ended.
    assert_eq!(gateway.metric(metric, &["outcome=\"decode_timeout\""]).await, 1.0);
    assert_eq!(gateway.metric(metric, &["outcome=\"prefill_timeout\""]).await, 0.0);
}

async fn respond(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"well"))))
}

#[tokio::test]
async fn a_dead_http2_connection_to_a_service_is_replaced() {
    let fleet = Fleet::start_single(1).await;
    let backend = Loopback::claim();
    let listener = TcpListener::bind(backend.port(8000)).await.expect("a port");
    tokio::spawn(async move {
        // The first connection is acknowledged by the kernel and answered by no server.
        let (_dead, _) = listener.accept().await.expect("a connection");
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(socket), service_fn(respond)));
        }
    });
    service_with(&fleet, &[backend.ip()], "appProtocol: kubernetes.io/h2c");
    let gateway = fleet.gateway().await;
    let start = Instant::now();
    // It only reads, so it is sent again where its connection broke.
    gateway.client.get(SERVICE).await.expect_status(200);
    // A PING after 10 s, unanswered for 5 s.
    let took = start.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(25)).contains(&took), "{took:?}");
}
