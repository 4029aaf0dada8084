//! The spans of a request that has ended: one for the request, and below it one for each part of its time.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use router_core::timeline::TimelinePart;

use super::FinishedRequest;
use super::traceparent::TraceContext;
use crate::gateway::timeline::summary::RequestSummary;

/// The flag of a span whose parent is in another process, and that this is known (OTLP, `SpanFlags`).
const FLAGS: u32 = 0x100;
const REMOTE_PARENT: u32 = 0x300;

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
        name: format!("POST {}", request.endpoint),
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

fn attributes(request: &RequestSummary) -> Vec<KeyValue> {
    let operation = match request.endpoint {
        "/v1/chat/completions" | "/v1/messages" | "/v1/responses" => "chat",
        "/v1/completions" | "/generate" => "text_completion",
        other => other,
    };
    let mut all = vec![
        attribute("http.request.method", text("POST")),
        attribute("url.path", text(request.endpoint)),
        attribute("http.response.status_code", Value::IntValue(request.status.into())),
        attribute("gen_ai.operation.name", text(operation)),
        attribute("pd_router.request_id", text(&request.id)),
        attribute("pd_router.pool", text(&request.pool.to_string())),
        attribute("pd_router.attempts", Value::IntValue(request.attempts.into())),
    ];
    all.extend(named("http.route", request.route.as_deref()));
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
    if request.is_failed() {
        all.push(attribute("error.type", text(request.reason)));
    }
    all
}

fn status(request: &RequestSummary) -> Option<Status> {
    let message = request.detail.as_deref().unwrap_or_default().to_owned();
    request.is_failed().then_some(Status { message, code: StatusCode::Error as i32 })
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
