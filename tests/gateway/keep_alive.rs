//! `--sse-ping-interval`: streams that wait, for capacity, an engine or the next token, are kept alive.

use std::time::Duration;

use router_tests::client::End;
use router_tests::fleet::SOON;
use router_tests::loopback::Loopback;
use router_tests::manifests::{ENGINE_PORT, Pod};
use router_tests::{Fleet, Gateway, Stream, eventually};
use sglang_sim::{Action, Config, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::{CHAT, chat, http2, streamed};

const PING: &str = ": ping\n\n";
const OFTEN: [&str; 2] = ["--sse-ping-interval", "100ms"];
const PROBES_OFTEN: [&str; 4] = ["--probe-interval", "100ms", "--probe-timeout", "200ms"];

/// Reads until the text has come; returns everything that has come.
async fn read_until(stream: &mut Stream, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let piece = stream.piece().await.unwrap_or_else(|end| panic!("{end:?} after {all:?}"));
        all.push_str(&String::from_utf8_lossy(&piece));
    }
    all
}

#[tokio::test]
async fn a_stream_that_waits_for_its_engines_is_kept_alive_until_its_events_come() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&OFTEN).await;
    fleet.decode[0].once(Action::FreezeScheduler { ms: Some(1000) });
    let mut stream = gateway.client.open(CHAT, &streamed("hi")).await;
    assert_eq!(stream.status, 200);
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert!(stream.headers.contains_key("x-request-id"), "{:?}", stream.headers);
    let before = read_until(&mut stream, &PING.repeat(3)).await;
    assert_eq!(before.replace(PING, ""), "", "something else came first");
    let (events, end) = stream.events().await;
    assert_eq!(end, End::Clean);
    assert!(events.len() > 2 && events.last().is_some_and(|event| event.is_done()), "{events:?}");
    assert!(events[0].json()["choices"].is_array(), "{events:?}");
    eventually("the request is counted", SOON, async || {
        let labels = ["code=\"200\"", "reason=\"ok\""];
        (gateway.metric("pd_router_requests_total", &labels).await == 1.0).then_some(())
    })
    .await;
}

/// The engines serve one request at once, which is the returned stream.
async fn with_the_only_slot_held() -> (Fleet, Gateway, Stream) {
    let fleet =
        Fleet::start_with(1, 1, |config| Config { max_running_requests: 1, ..config }).await;
    let gateway = fleet.gateway_with(&OFTEN).await;
    let mut long = streamed("hold");
    (long["max_tokens"], long["ignore_eos"]) = (100_000.into(), true.into());
    let mut holder = gateway.client.open(CHAT, &long).await;
    holder.next().await.expect("a first event");
    (fleet, gateway, holder)
}

#[tokio::test]
async fn a_stream_that_waits_for_capacity_is_kept_alive() {
    let (fleet, gateway, holder) = with_the_only_slot_held().await;
    let mut waiting = gateway.client.open(CHAT, &streamed("second")).await;
    read_until(&mut waiting, PING).await;
    assert_eq!(fleet.decode[0].legs().len(), 1, "the second request does not wait");
    drop(holder);
    let (events, end) = waiting.events().await;
    assert!(end == End::Clean && events.last().is_some_and(|event| event.is_done()), "{events:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_up_the_queue() {
    let (fleet, gateway, holder) = with_the_only_slot_held().await;
    // A window of 0: the gateway can send the head and nothing else.
    let mut sender = http2::connect(&gateway, 0).await;
    let unread = http2::request(&gateway, &streamed("unread"));
    let unread = http2::send(&mut sender, unread).await;
    assert_eq!(unread.status(), 200);
    let mut behind = gateway.client.open(CHAT, &streamed("behind")).await;
    read_until(&mut behind, &PING.repeat(2)).await;
    drop(holder);
    let legs = fleet.decode[0].legs_arrived(2).await;
    assert!(String::from_utf8_lossy(&legs[1].body).contains("unread"), "{:?}", legs[1]);
    drop((unread, sender));
    let (events, end) = behind.events().await;
    assert!(end == End::Clean && events.last().is_some_and(|event| event.is_done()), "{events:?}");
}

#[tokio::test]
async fn the_time_of_the_upload_does_not_count() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&["--sse-ping-interval", "2s"]).await;
    let body = "{\"error\": {\"message\": \"no\"}}".to_owned();
    fleet.decode[0].always(Action::Status { status: 400, body });
    let body = streamed("hi").to_string();
    let (first, last) = body.split_at(body.len() / 2);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {}", body.len());
    let mut socket = TcpStream::connect(gateway.client.address).await.expect("a connection");
    socket.write_all(format!("{head}\r\n\r\n{first}").as_bytes()).await.expect("open");
    sleep(Duration::from_millis(2200)).await;
    socket.write_all(last.as_bytes()).await.expect("open");
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 400");
}

#[tokio::test]
async fn a_failure_after_the_head_is_an_event_and_another_pair_is_tried_before() {
    let fleet = Fleet::start(1, 2).await;
    let flags = [&OFTEN[..], &["--unresponsive-timeout", "300ms"], &PROBES_OFTEN].concat();
    let gateway = fleet.gateway_with(&flags).await;
    fleet.decode.iter().for_each(|decode| decode.once(Action::Freeze { ms: None }));
    let (events, end) = gateway.client.open(CHAT, &streamed("hi")).await.events().await;
    assert_eq!(end, End::Clean);
    let error = events.iter().map(|event| event.data.as_str()).find(|data| data.contains("error"));
    assert!(error.is_some_and(|error| error.contains("decode_")), "{events:?}");
    assert!(!events.iter().any(|event| event.data.contains("127.")), "{events:?}");
    let tried = fleet.decode.iter().filter(|decode| !decode.legs().is_empty()).count();
    assert_eq!(tried, 2, "one more pair is there");
    let labels = ["code=\"200\"", "reason=\"decode_silent\""];
    eventually("the failure is counted", SOON, async || {
        (gateway.metric("pd_router_requests_total", &labels).await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_a_waiting_stream_ends_both_legs_and_the_log_names_them() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway_with(&OFTEN).await;
    fleet.prefill[0].once(Action::NeverRendezvous);
    let mut stream = gateway.client.open(CHAT, &streamed("hi")).await;
    read_until(&mut stream, PING).await;
    drop(stream);
    for engine in fleet.engines() {
        let leg = engine.legs_arrived(1).await.remove(0);
        engine.abort_arrived(&leg).await;
    }
    let line = eventually("the request is logged", SOON, async || {
        let log = gateway.log();
        log.lines().find(|line| line.contains("\"reason\":\"client_gone\"")).map(str::to_owned)
    })
    .await;
    for field in ["\"attempts\":1", "\"prefill\":\"", "\"worker\":\""] {
        assert!(line.contains(field), "{field}: {line}");
    }
}

#[tokio::test]
async fn a_silence_between_events_is_filled_and_a_whole_response_is_not_affected() {
    let inter_token = Duration::from_millis(700);
    let fleet = Fleet::start_with(1, 1, |config| Config { inter_token, ..config.instant() }).await;
    let gateway = fleet.gateway_with(&OFTEN).await;
    let mut body = streamed("hi");
    (body["max_tokens"], body["ignore_eos"]) = (3.into(), true.into());
    let text = gateway.client.open(CHAT, &body).await.answer().await.text();
    let first = text.find("\"content\"").expect("a first event");
    assert!(text[first..].contains(PING) && text.ends_with("[DONE]\n\n"), "{text}");
    let mut whole = chat("hi");
    whole["max_tokens"] = 2.into();
    let answer = gateway.client.post(CHAT, &whole).await.expect_status(200);
    assert!(answer.json()["choices"].is_array(), "{}", answer.text());
}

/// An engine that streams nothing but comments, until the test lets it go on.
async fn commenting_engine(goes_on: watch::Receiver<bool>) -> Loopback {
    let address = Loopback::claim();
    let listener = TcpListener::bind(address.port(ENGINE_PORT)).await.expect("a port");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut goes_on = goes_on.clone();
            tokio::spawn(async move { serve(socket, &mut goes_on).await });
        }
    });
    address
}

async fn serve(mut socket: TcpStream, goes_on: &mut watch::Receiver<bool>) -> Option<()> {
    let mut request = Vec::new();
    loop {
        if socket.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
        if request.starts_with(b"GET ") && request.ends_with(b"\r\n\r\n") {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            socket.write_all(answer).await.ok()?;
            request.clear();
        } else if request.ends_with(b"}") {
            break;
        }
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let comments = ": engine\r\n\r\n".repeat(20);
    socket.write_all(format!("{head}{comments}").as_bytes()).await.ok()?;
    goes_on.wait_for(|goes_on| *goes_on).await.ok()?;
    let event = r#"data: {"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    let rest = format!(": engine again\n\n{event}\n\n: engine last\n\ndata: [DONE]\n\n");
    socket.write_all(rest.as_bytes()).await.ok()
}

#[tokio::test]
async fn comments_of_an_engine_reach_the_client_from_the_first_event_on() {
    let (go_on, goes_on) = watch::channel(false);
    let engine = commenting_engine(goes_on).await;
    let fleet = Fleet::start_single(0).await;
    fleet.manifests.put_pod(&Pod::new("fake-0", Role::Unified.engine_type(), engine.ip()));
    let gateway = Gateway::start_with(&fleet.manifests, &OFTEN).await;
    let mut stream = gateway.client.open(CHAT, &streamed("hi")).await;
    assert_eq!(read_until(&mut stream, &PING.repeat(2)).await.replace(PING, ""), "");
    go_on.send(true).expect("the engine is there");
    let text = stream.answer().await.text();
    let order = ["\"content\":\"a\"", ": engine last", "[DONE]"];
    let found: Vec<_> = order.iter().map(|part| text.find(part)).collect();
    assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{text}");
    assert_eq!(text.matches(": engine").count(), 1, "{text}");
}
