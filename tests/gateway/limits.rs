//! Limits, each with its status, and the protocols that clients use.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use router_tests::fleet::SOON;
use router_tests::{Fleet, eventually};
use sglang_sim::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{CHAT, chat, streamed};

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-body", "10000"]).await;
    let answer = gateway.client.post(CHAT, &chat(&"x".repeat(20_000))).await.expect_status(413);
    assert_eq!(answer.header("x-pd-router-reason"), "body_too_large");
    gateway.client.post(CHAT, &chat(&"x".repeat(9_000))).await.expect_status(200);
    assert_eq!(fleet.prefill[0].legs().len(), 1);
}

#[tokio::test]
async fn a_head_over_the_limit_is_a_431() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-header-bytes", "16384"]).await;
    let mut request = gateway.client.json_request(CHAT, chat("hi").to_string());
    let large = HeaderValue::try_from("x".repeat(40_000)).expect("a value");
    request.headers_mut().insert("x-large", large);
    assert_eq!(gateway.client.send(request).await.status, 431);
}

#[tokio::test]
async fn a_client_that_sends_no_head_is_disconnected() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--header-timeout", "200ms"]).await;
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(b"POST /v1/chat").await.expect("written");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, socket.read_to_end(&mut rest));
    assert!(read.await.is_ok(), "the connection stays open");
}

#[tokio::test]
async fn a_client_that_stops_in_its_body_is_disconnected() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--body-timeout", "200ms"]).await;
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{\"model\"");
    socket.write_all(head.as_bytes()).await.expect("written");
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(SOON, socket.read_exact(&mut answer));
    read.await.expect("an answer in time").expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

#[tokio::test]
async fn chunked_bodies_and_expectations_are_served() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let body = chat("hi").to_string();
    let (first, second) = body.split_at(20);
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
    );
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(head.as_bytes()).await.expect("written");
    let mut go_on = vec![0; 12];
    socket.read_exact(&mut go_on).await.expect("a word to go on");
    assert_eq!(String::from_utf8_lossy(&go_on), "HTTP/1.1 100");
    let chunks = format!("{}{}0\r\n\r\n", chunk(first), chunk(second));
    socket.write_all(chunks.as_bytes()).await.expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn http2_clients_share_one_connection() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    let address = gateway.client.address;
    let socket = TcpStream::connect(address).await.expect("a connection");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
    let (sender, connection) = handshake.await.expect("HTTP/2 without TLS");
    let connection = tokio::spawn(connection);
    let requests: Vec<_> = (0..8)
        .map(|index| {
            let mut sender = sender.clone();
            let body = if index % 2 == 0 { chat("hi") } else { streamed("hi") };
            let request = Request::post(format!("http://{address}{CHAT}"))
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body.to_string())))
                .expect("a request");
            tokio::spawn(async move {
                let answer = sender.send_request(request).await.expect("an answer");
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.expect("a whole body").to_bytes()
            })
        })
        .collect();
    for (index, request) in requests.into_iter().enumerate() {
        let body = request.await.expect("no panic");
        assert!(index % 2 == 0 || body.ends_with(b"data: [DONE]\n\n"));
    }
    connection.abort();
}

#[tokio::test]
async fn connections_are_bounded_and_counted() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-connections", "2"]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(gateway.client.address).await.expect("a connection"));
    }
    eventually("two connections are counted", SOON, async || {
        (gateway.metric("pd_router_connections", &[]).await == 2.0).then_some(())
    })
    .await;
    let client = gateway.client;
    let third = tokio::spawn(async move { client.post(CHAT, &chat("hi")).await });
    let early = tokio::time::timeout(Duration::from_millis(300), async {
        fleet.decode[0].legs_arrived(1).await
    });
    assert!(early.await.is_err(), "a third connection was served");
    held.pop();
    third.await.expect("no panic").expect_status(200);
}

#[tokio::test]
async fn a_connection_to_an_engine_that_died_idle_is_no_error() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    for _ in 0..3 {
        gateway.client.post(CHAT, &chat("hi")).await.expect_status(200);
        for engine in fleet.engines() {
            engine.sim.restart().await.expect("it starts again");
        }
        eventually("both engines are up again", SOON, async || {
            let fleet = gateway.fleet().await.to_string();
            (!fleet.contains("unreachable")).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_whole_answer_that_never_comes_ends_and_releases_both_engines() {
    let fleet = Fleet::start_with(1, 1, |engine| engine).await;
    let gateway = fleet.gateway_with(&["--first-byte-timeout", "1s"]).await;
    // It has the KV cache, answers probes, and makes no token.
    fleet.decode[0].once(Action::Slow { factor: 1e6 });
    let answer = gateway.client.post(CHAT, &chat("hi")).await.expect_status(504);
    assert_eq!(answer.header("x-pd-router-reason"), "decode_timeout");
    let leg = fleet.decode[0].legs_arrived(1).await.remove(0);
    fleet.decode[0].abort_arrived(&leg).await;
    let usage = gateway.metric("pd_router_worker_requests", &[]).await;
    assert_eq!(usage, 0.0, "a lease was kept");
}

#[tokio::test]
async fn a_gateway_without_file_descriptors_charges_no_engine() {
    let fleet = Fleet::start(1, 2).await;
    // Probes go on meanwhile, and fail for want of descriptors as well.
    let flags = ["--probe-interval", "200ms", "--engine-load-interval", "1h"];
    let gateway = fleet.gateway_with(&flags).await;
    gateway.limit_open_files(gateway.open_files() + 2);
    let requests = (0..8).map(|_| {
        let client = gateway.client;
        tokio::spawn(async move { client.post(CHAT, &chat("hi")).await })
    });
    let mut refused = 0;
    for request in requests.collect::<Vec<_>>() {
        let answer = request.await.expect("no panic");
        let (status, reason) = (answer.status.as_u16(), answer.header("x-pd-router-reason"));
        assert!(
            matches!((status, reason), (200, _) | (503, "gateway_resources")),
            "{status} {reason}"
        );
        refused += usize::from(status == 503);
    }
    assert!(refused > 0, "there were descriptors enough");
    gateway.limit_open_files(1024);
    eventually("all is well again", SOON, async || {
        (gateway.client.post(CHAT, &chat("hi")).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("pd_router_worker_up", &[]).await, 3.0);
    assert!(!gateway.log().contains("\"before\":\"Up\""), "an engine was charged");
}
