//! HTTP/2 clients: what they do not take, and heads that are too large.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use router_tests::fleet::SOON;
use router_tests::{Fleet, Gateway, eventually};
use sglang_sim::Config;
use tokio::net::TcpStream;

use crate::{CHAT, chat, streamed};

pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// A connection whose streams may each receive that many bytes unread.
pub(crate) async fn connect(gateway: &Gateway, window: u32) -> Sender {
    let socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    let mut client = http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(window).initial_connection_window_size(1 << 20);
    let (sender, connection) = client.handshake(TokioIo::new(socket)).await.expect("HTTP/2");
    // It ends with the sender.
    tokio::spawn(connection);
    sender
}

pub(crate) async fn send(sender: &mut Sender, request: Request<Full<Bytes>>) -> Response<Incoming> {
    sender.send_request(request).await.expect("an answer")
}

pub(crate) fn request(gateway: &Gateway, body: &serde_json::Value) -> Request<Full<Bytes>> {
    Request::post(format!("http://{}{CHAT}", gateway.client.address))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("a request")
}

fn long_stream() -> serde_json::Value {
    let mut body = streamed("hi");
    body["max_tokens"] = 50_000.into();
    body["ignore_eos"] = true.into();
    body
}

#[tokio::test]
async fn a_stream_that_its_client_stops_reading_is_reset_alone() {
    let fleet = Fleet::start_with(1, 1, |engine: Config| Config {
        context_length: 10_000_000,
        max_total_tokens: 10_000_000,
        ..engine.instant()
    })
    .await;
    let gateway = fleet.gateway_with(&["--send-timeout", "1s"]).await;
    let mut sender = connect(&gateway, 4096).await;
    let untaken = send(&mut sender, request(&gateway, &long_stream())).await;
    assert_eq!(untaken.status(), 200);
    let legs = fleet.decode[0].legs_arrived(1).await;
    fleet.decode[0].abort_arrived_within(&legs[0], Duration::from_secs(15)).await;
    eventually("it is in flight no more", SOON, async || {
        (gateway.metric("pd_router_requests_in_flight", &[]).await == 0.0).then_some(())
    })
    .await;
    // The connection still works.
    let answer = send(&mut sender, request(&gateway, &chat("hi"))).await;
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.expect("a whole answer");
    drop(untaken);
}

#[tokio::test]
async fn a_slow_engine_is_not_taken_for_a_client_that_stops_reading() {
    let slow =
        |engine: Config| Config { inter_token: Duration::from_millis(600), ..engine.instant() };
    let fleet = Fleet::start_with(1, 1, slow).await;
    let gateway = fleet.gateway_with(&["--send-timeout", "200ms"]).await;
    let mut sender = connect(&gateway, 1 << 16).await;
    let answer = send(&mut sender, request(&gateway, &streamed("hi"))).await;
    let body = answer.into_body().collect().await.expect("a whole answer").to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_head_over_the_limit_is_a_431_and_the_connection_goes_on() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--max-header-bytes", "16384"]).await;
    let mut sender = connect(&gateway, 1 << 16).await;
    for (headers, length) in [(1, 20_000), (20, 1_000), (300, 100)] {
        let mut large = request(&gateway, &chat("hi"));
        for index in 0..headers {
            let name = http::HeaderName::try_from(format!("x-large-{index}")).expect("a name");
            let value = "v".repeat(length).try_into().expect("a value");
            large.headers_mut().insert(name, value);
        }
        assert_eq!(send(&mut sender, large).await.status(), 431, "{headers} of {length}");
        assert_eq!(send(&mut sender, request(&gateway, &chat("hi"))).await.status(), 200);
    }
}
