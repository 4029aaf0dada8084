//! Requests as OpenTelemetry traces, at a small OTLP receiver.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use router_tests::{Answer, Fleet, Gateway, eventually};
use sglang_sim::Action;
use tokio::net::TcpListener;

use crate::{CHAT, chat, streamed};

/// A batch is filled for a second; this machine may be slow.
const SOON: Duration = Duration::from_secs(15);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that keeps what it gets, or refuses it.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    async fn start(status: StatusCode) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let kept = Arc::clone(&spans);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request| take(request, Arc::clone(&kept), status));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Collector { address, spans }
    }

    fn flags(&self, ratio: &str) -> Vec<String> {
        let endpoint = format!("http://{}", self.address);
        ["--otlp-traces-endpoint", &endpoint, "--trace-ratio", ratio, "--max-attempts", "1"]
            .map(str::to_owned)
            .to_vec()
    }

    /// The spans, once there are as many traces.
    async fn traces(&self, count: usize) -> Vec<Span> {
        eventually(&format!("{count} traces"), SOON, async || {
            let spans = self.spans.lock().expect("no receiver panics").clone();
            let servers = spans.iter().filter(|span| span.kind == SpanKind::Server as i32);
            (servers.count() >= count).then_some(spans)
        })
        .await
    }
}

async fn take(
    request: Request<Incoming>,
    kept: Arc<Mutex<Vec<Span>>>,
    status: StatusCode,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let export = ExportTraceServiceRequest::decode(body).expect("an export");
    let scopes = export.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let spans = scopes.flat_map(|scope| scope.spans);
    kept.lock().expect("no receiver panics").extend(spans);
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    Ok(response)
}

async fn gateway(fleet: &Fleet, flags: &[String]) -> Gateway {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    fleet.gateway_with(&flags).await
}

async fn send(gateway: &Gateway, traceparent: Option<&str>) -> (u16, String) {
    let mut request = gateway.client.json_request(CHAT, streamed("hi").to_string());
    if let Some(value) = traceparent {
        let value = HeaderValue::from_str(value).expect("a header");
        request.headers_mut().insert("traceparent", value);
    }
    let answer = gateway.client.send(request).await.answer().await;
    (answer.status.as_u16(), answer.header("x-request-id").to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        _ => None,
    }
}

#[tokio::test]
async fn a_sampled_trace_is_continued_with_a_span_for_each_part() {
    let collector = Collector::start(StatusCode::OK).await;
    let fleet = Fleet::start(1, 1).await;
    let gateway = gateway(&fleet, &collector.flags("0")).await;
    send(&gateway, Some(&format!("00-{TRACE}-{PARENT}-00"))).await;
    let (status, id) = send(&gateway, Some(&format!("00-{TRACE}-{PARENT}-01"))).await;
    assert_eq!(status, 200);
    let spans = collector.traces(1).await;
    let (servers, parts): (Vec<&Span>, Vec<&Span>) =
        spans.iter().partition(|span| span.kind == SpanKind::Server as i32);
    assert_eq!(servers.len(), 1, "what is not sampled is not exported");
    let server = servers[0];
    assert_eq!(
        (hex(&server.trace_id).as_str(), hex(&server.parent_span_id).as_str()),
        (TRACE, PARENT)
    );
    assert_eq!(server.name, format!("POST {CHAT}"));
    // Sampled, with a parent in another process.
    assert_eq!(server.flags, 0x301);
    assert_eq!(attribute(server, "pd_router.request_id"), Some(id));
    assert_eq!(attribute(server, "pd_router.worker").as_deref(), Some("default/decode-0"));
    assert_eq!(attribute(server, "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(server, "gen_ai.operation.name").as_deref(), Some("chat"));
    let names: Vec<&str> = parts.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"received"));
    assert!(names.contains(&"prefill") && names.contains(&"done"), "{names:?}");
    // They follow each other, from the begin of the request to its end.
    let mut from = server.start_time_unix_nano;
    for part in parts {
        assert_eq!(part.parent_span_id, server.span_id);
        assert_eq!(part.trace_id, server.trace_id);
        assert!(part.start_time_unix_nano.abs_diff(from) < 1_000, "{}", part.name);
        from = part.end_time_unix_nano;
    }
    assert!(server.end_time_unix_nano.abs_diff(from) < 1_000_000);
}

#[tokio::test]
async fn a_failure_is_always_exported_and_all_are_where_the_ratio_is_1() {
    let collector = Collector::start(StatusCode::OK).await;
    let fleet = Fleet::start(1, 1).await;
    let failing = gateway(&fleet, &collector.flags("0")).await;
    send(&failing, None).await;
    let mut answers = Vec::new();
    for status in [400, 500] {
        fleet.decode[0].once(Action::Status { status, body: r#"{"message":"no"}"#.into() });
        answers.push(failing.client.post(CHAT, &chat("hi")).await);
    }
    let spans = collector.traces(2).await;
    let server_of = |answer: &Answer| {
        let id = Some(answer.header("x-request-id").to_owned());
        spans.iter().find(|span| attribute(span, "pd_router.request_id") == id).expect("a span")
    };
    for (answer, is_error) in answers.iter().zip([false, true]) {
        let server = server_of(answer);
        assert_eq!(answer.status.is_server_error(), is_error, "{}", answer.status);
        let reason = answer.header("x-pd-router-reason").to_owned();
        assert_eq!(attribute(server, "pd_router.reason"), Some(reason.clone()));
        // A request that its client got wrong is no error of the server.
        assert_eq!(attribute(server, "error.type"), is_error.then_some(reason));
        let code = server.status.as_ref().map(|status| status.code);
        assert_eq!(code, is_error.then_some(2));
        assert!(server.parent_span_id.is_empty() && server.trace_id != vec![0; 16]);
    }
    let all = gateway(&fleet, &collector.flags("1")).await;
    for _ in 0..5 {
        send(&all, None).await;
    }
    collector.traces(7).await;
    assert_eq!(all.metric("pd_router_traces_total", &["result=\"sent\""]).await, 5.0);
}

#[tokio::test]
async fn a_collector_that_refuses_costs_no_request_and_is_counted() {
    let collector = Collector::start(StatusCode::SERVICE_UNAVAILABLE).await;
    let fleet = Fleet::start(1, 1).await;
    let gateway = gateway(&fleet, &collector.flags("1")).await;
    for _ in 0..3 {
        assert_eq!(send(&gateway, None).await.0, 200);
    }
    eventually("they are counted", SOON, async || {
        let failed = gateway.metric("pd_router_traces_total", &["result=\"failed\""]).await;
        (failed >= 3.0).then_some(())
    })
    .await;
    assert_eq!(
        gateway.log().matches("traces cannot be sent").count(),
        1,
        "one line for one outage"
    );
}

#[tokio::test]
async fn the_last_traces_are_sent_when_the_gateway_ends() {
    let collector = Collector::start(StatusCode::OK).await;
    let fleet = Fleet::start(1, 1).await;
    let mut gateway = gateway(&fleet, &collector.flags("1")).await;
    send(&gateway, None).await;
    gateway.terminate();
    assert_eq!(gateway.ended(SOON).await.code(), Some(0));
    collector.traces(1).await;
}
