//! Connections: idle clients are disconnected, and accepted ones are served.

use std::time::Duration;

use router_tests::fleet::SOON;
use router_tests::{Fleet, Gateway, eventually};
use sglang_sim::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{CHAT, chat, streamed};

const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.client.address).await.expect("a connection")
}

/// Reads until the other side closes.
async fn ends(mut socket: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    timeout(SOON, socket.read_to_end(&mut all)).await.expect("it stays open").expect("read");
    all
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_disconnected_in_every_protocol() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--header-timeout", "200ms"]).await;
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n"] {
        let mut socket = connect(&gateway).await;
        socket.write_all(said).await.expect("written");
        assert!(ends(socket).await.is_empty());
    }
    let mut socket = connect(&gateway).await;
    socket.write_all(HTTP2).await.expect("written");
    let mut said = Vec::new();
    let goodbye = |said: &[u8]| said.windows(4).any(|head| head == b"\0\0\x08\x07");
    while !goodbye(&said) {
        let read = timeout(SOON, socket.read_buf(&mut said)).await.expect("no GOAWAY in time");
        assert_ne!(read.expect("read"), 0, "closed without GOAWAY");
    }
}

#[tokio::test]
async fn requests_on_open_connections_are_answered_after_sigterm() {
    let fleet = Fleet::start(1, 1).await;
    let mut gateway = fleet.gateway().await;
    let mut sockets = Vec::new();
    for _ in 0..32 {
        sockets.push(connect(&gateway).await);
    }
    gateway.terminate();
    let body = chat("hi").to_string();
    let kind = "content-type: application/json";
    let length = format!("content-length: {}", body.len());
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\n{kind}\r\n{length}\r\n\r\n");
    for socket in &mut sockets {
        socket.write_all((head.clone() + &body).as_bytes()).await.expect("written");
    }
    for socket in sockets {
        let answer = ends(socket).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        assert!(answer.contains("connection: close"), "{answer:?}");
    }
    assert!(gateway.ended(Duration::from_secs(5)).await.success());
}

#[tokio::test]
async fn a_client_that_stops_reading_is_disconnected() {
    let talkative = |engine: Config| Config {
        natural_length: 60_000,
        context_length: 10_000_000,
        max_total_tokens: 10_000_000,
        ..engine.instant()
    };
    let fleet = Fleet::start_with(1, 1, talkative).await;
    let gateway = fleet.gateway_with(&["--send-timeout", "1s"]).await;
    let mut body = streamed("hi");
    body["max_tokens"] = 100_000.into();
    let body = body.to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json");
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut socket = connect(&gateway).await;
    socket.write_all(request.as_bytes()).await.expect("written");
    let legs = fleet.decode[0].legs_arrived(1).await;
    eventually("the request is given up", Duration::from_secs(15), async || {
        (!fleet.decode[0].aborts().is_empty()).then_some(())
    })
    .await;
    fleet.decode[0].abort_arrived(&legs[0]).await;
    drop(socket);
}
