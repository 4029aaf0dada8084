//! The spans of a request that has ended: one for the request, and below it one for each part of its time.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use router_core::inner_parts::{InnerParts, OF_AGENTS};
use router_core::sglang::Endpoint;
use router_core::timeline::TimelinePart;

use super::FinishedRequest;
use super::traceparent::TraceContext;
use crate::gateway::timeline::summary::RequestSummary;

/// `SpanFlags` of OTLP: what is exported is sampled (0x1), and whether the parent is in another process is
/// known (0x100).
const FLAGS: u32 = 0x101;
/// The parent is in another process.
const REMOTE_PARENT: u32 = FLAGS | 0x200;

/// Everything that is sent at once.
pub(super) fn export(requests: &[FinishedRequest], instance: &str) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![
            attribute("service.name", text("pd-router")),
            attribute("service.version", text(env!("CARGO_PKG_VERSION"))),
            attribute("service.instance.id", text(instance)),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "pd-router".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let spans = requests.iter().flat_map(|one| spans(&one.request, one.context)).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let of_resource =
        ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![of_resource] }
}

fn spans(request: &RequestSummary, context: TraceContext) -> Vec<Span> {
    let span_id = rand::random::<u64>().max(1);
    let trace_id = context.trace.to_be_bytes().to_vec();
    let start = request.started_ms.saturating_mul(1_000_000);
    let at = |ms: f64| start.saturating_add((ms * 1e6) as u64);
    let mut spans = vec![Span {
        trace_id: trace_id.clone(),
        span_id: span_id.to_be_bytes().to_vec(),
        parent_span_id: context.parent.map_or(Vec::new(), |parent| parent.to_be_bytes().to_vec()),
        flags: if context.parent.is_some() { REMOTE_PARENT } else { FLAGS },
        name: name(request),
        kind: SpanKind::Server as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: at(request.duration_ms),
        attributes: attributes(request),
        status: status(request),
        ..Span::default()
    }];
    let mut from = 0.0;
    for part in TimelinePart::ALL {
        let measured = request.timeline.part(part);
        let Some(ms) = measured.value() else { continue };
        let mut attributes =
            vec![attribute("pd_router.provenance", text(measured.provenance().as_str()))];
        let predicted = request.explanation.as_ref().map(|choice| choice.chosen.estimate);
        if let Some(predicted) = predicted.filter(|_| part == TimelinePart::Prefill) {
            let ms = f64::from(predicted.ttft_ms());
            attributes.push(attribute("pd_router.predicted_ms", Value::DoubleValue(ms)));
        }
        if part == TimelinePart::Prefill {
            attributes.extend(inside(request));
        }
        let is_retried = part == TimelinePart::Retried;
        spans.push(Span {
            trace_id: trace_id.clone(),
            span_id: rand::random::<u64>().max(1).to_be_bytes().to_vec(),
            parent_span_id: span_id.to_be_bytes().to_vec(),
            flags: FLAGS,
            name: part.as_str().to_owned(),
            kind: SpanKind::Internal as i32,
            start_time_unix_nano: at(from),
            end_time_unix_nano: at(from + ms),
            attributes,
            events: if is_retried { retries(request, from, at) } else { Vec::new() },
            ..Span::default()
        });
        from += ms;
    }
    spans
}

/// The parts inside the engines, as far as agents have reported them.
fn inside(request: &RequestSummary) -> impl Iterator<Item = KeyValue> {
    let parts = InnerParts::of(&request.inner.moments()).of_agents();
    OF_AGENTS.into_iter().zip(parts).filter_map(|(name, ms)| {
        Some(attribute(&format!("pd_router.{name}_ms"), Value::DoubleValue(ms.value()?)))
    })
}

/// An event for each attempt before the last one, when it failed.
fn retries(request: &RequestSummary, from: f64, at: impl Fn(f64) -> u64) -> Vec<Event> {
    let mut failed_ms = from;
    let event = |retry: &crate::gateway::timeline::summary::FailedAttempt| {
        failed_ms += retry.duration_ms;
        let mut attributes = vec![
            attribute("error.type", text(retry.reason)),
            attribute("pd_router.detail", text(&retry.detail)),
        ];
        attributes.extend(named("pd_router.prefill", retry.workers.prefill.as_deref()));
        attributes.extend(named("pd_router.worker", retry.workers.worker.as_deref()));
        Event {
            time_unix_nano: at(failed_ms),
            name: "attempt failed".to_owned(),
            attributes,
            ..Event::default()
        }
    };
    request.retries.iter().map(event).collect()
}

/// The name of the server span. Endpoints that do not generate have several paths and methods.
fn name(request: &RequestSummary) -> String {
    match Endpoint::from_path(request.endpoint) {
        Some(endpoint) => format!("POST {}", endpoint.path()),
        None => request.endpoint.to_owned(),
    }
}

/// What the conventions for HTTP and for generative AI ask for, of an endpoint that generates.
fn of_endpoint(endpoint: Endpoint) -> [KeyValue; 3] {
    let operation = match endpoint {
        Endpoint::Chat | Endpoint::Messages | Endpoint::Responses => "chat",
        Endpoint::Completions | Endpoint::Generate => "text_completion",
    };
    [
        attribute("http.request.method", text("POST")),
        attribute("url.path", text(endpoint.path())),
        attribute("gen_ai.operation.name", text(operation)),
    ]
}

fn attributes(request: &RequestSummary) -> Vec<KeyValue> {
    let mut all = vec![
        attribute("http.response.status_code", Value::IntValue(request.status.into())),
        attribute("pd_router.reason", text(request.reason)),
        attribute("pd_router.request_id", text(&request.id)),
        attribute("pd_router.pool", text(&request.pool.to_string())),
        attribute("pd_router.attempts", Value::IntValue(request.attempts.into())),
    ];
    all.extend(Endpoint::from_path(request.endpoint).into_iter().flat_map(of_endpoint));
    all.extend(named("pd_router.route", request.route.as_deref()));
    all.extend(named("pd_router.prefill", request.workers.prefill.as_deref()));
    all.extend(named("pd_router.worker", request.workers.worker.as_deref()));
    let tokens = request.prefill_report.prompt_tokens.value();
    let tokens = tokens.and_then(|tokens| i64::try_from(tokens).ok());
    all.extend(
        tokens.map(|tokens| attribute("gen_ai.usage.input_tokens", Value::IntValue(tokens))),
    );
    if let Some(ttft) = request.ttft_ms.value() {
        all.push(attribute("pd_router.ttft_ms", Value::DoubleValue(ttft)));
    }
    if is_error(request) {
        all.push(attribute("error.type", text(request.reason)));
    }
    all
}

/// Whether the gateway or an engine failed. What a client did wrong, and a client that left, is no error of a
/// server (OpenTelemetry's conventions for HTTP spans).
fn is_error(request: &RequestSummary) -> bool {
    let is_of_client = (400..500).contains(&request.status) || request.reason == "client_gone";
    request.is_failed() && !is_of_client
}

fn status(request: &RequestSummary) -> Option<Status> {
    let message = request.detail.as_deref().unwrap_or_default().to_owned();
    is_error(request).then_some(Status { message, code: StatusCode::Error as i32 })
}

fn named(key: &str, name: Option<&str>) -> Option<KeyValue> {
    name.map(|name| attribute(key, text(name)))
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::timeline::summary::tests::summary;

    fn server_span(request: &RequestSummary) -> Span {
        let context = TraceContext { trace: 1, parent: Some(2), is_sampled: true };
        spans(request, context).swap_remove(0)
    }

    fn value<'s>(span: &'s Span, key: &str) -> Option<&'s str> {
        let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn only_a_failure_of_the_server_is_an_error() {
        for (status, reason, is_error) in [
            (200, "ok", false),
            (200, "decode_broken", true),
            (200, "client_gone", false),
            (400, "engine_refused", false),
            (499, "client_gone", false),
            (502, "engine_error", true),
        ] {
            let request = RequestSummary { status, ..summary("a", reason, 1.0) };
            let span = server_span(&request);
            assert_eq!(span.status.is_some(), is_error, "{status} {reason}");
            assert_eq!(value(&span, "error.type").is_some(), is_error, "{status} {reason}");
            assert_eq!(value(&span, "pd_router.reason"), Some(reason));
        }
    }

    #[test]
    fn an_endpoint_that_generates_nothing_names_its_span() {
        let request = RequestSummary { endpoint: "one_worker", ..summary("a", "ok", 1.0) };
        let span = server_span(&request);
        assert_eq!(span.name, "one_worker");
        for key in ["gen_ai.operation.name", "http.request.method", "url.path"] {
            assert_eq!(value(&span, key), None, "{key}");
        }
        let span = server_span(&summary("a", "ok", 1.0));
        assert_eq!((&*span.name, span.flags), ("POST /generate", REMOTE_PARENT));
        assert_eq!(value(&span, "gen_ai.operation.name"), Some("text_completion"));
        assert_eq!(value(&span, "url.path"), Some("/generate"));
    }

    #[test]
    fn a_route_is_an_object_and_no_path() {
        let request =
            RequestSummary { route: Some("default/route".into()), ..summary("a", "ok", 1.0) };
        let span = server_span(&request);
        assert_eq!(value(&span, "pd_router.route"), Some("default/route"));
        assert_eq!(value(&span, "http.route"), None);
    }
}
