//! Failures inside a 200: error events of a stream, and answers that report an abort.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::super::json::{JsonType, Raw};
use super::super::{Endpoint, sse};
use super::engine::{parse_error, sanitize};

/// A failure that an engine reported inside an answer with status 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFault {
    /// The status that the engine would have sent if it had not sent 200 already.
    pub status: u16,
    /// Limited in length, without addresses.
    pub message: String,
}

/// Engines up to 0.4 answer a failed transfer with an empty, finished answer on OpenAI endpoints.
const ABORTED: &str = "the engine aborted the request, as old versions do when a KV transfer fails";

/// What every failure has in its text. The searchers are made once: every event is searched.
static ABORT: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"abort\""));
static ERROR: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"error\""));

/// The failure that an event reports, at any position in the stream. Cheap for other events.
///
/// Shapes: `{"error":{..}}` of chat, completions and `/generate`; `/generate`'s finish reason
/// `abort` with a status; `response.failed` and `error` of `/v1/responses`; `error` of
/// `/v1/messages`.
pub fn event_fault(endpoint: Endpoint, event: &[u8]) -> Option<EngineFault> {
    let abort = endpoint == Endpoint::Generate && ABORT.find(event).is_some();
    if !abort && ERROR.find(event).is_none() {
        return None;
    }
    let data = sse::data(event)?;
    let raw = Raw::parse(&data).ok().filter(|raw| raw.kind() == JsonType::Object)?;
    reported(endpoint, raw)
}

/// Like [`event_fault`], for an event before which nothing was generated: a choice that is
/// `abort`ed at once is then a failure too.
///
/// ```
/// use router_core::sglang::{Endpoint, fault::first_event_fault};
///
/// let event = b"data: {\"error\":{\"message\":\"KVTransferError\",\"code\":500}}\n\n";
/// assert_eq!(first_event_fault(Endpoint::Chat, event).unwrap().status, 500);
/// let event = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n";
/// assert_eq!(first_event_fault(Endpoint::Chat, event), None);
/// ```
pub fn first_event_fault(endpoint: Endpoint, event: &[u8]) -> Option<EngineFault> {
    event_fault(endpoint, event).or_else(|| {
        ABORT.find(event)?;
        let data = sse::data(event)?;
        aborted(endpoint, Raw::parse(&data).ok()?)
    })
}

/// The failure that a complete answer with status 200 reports. Engines up to 0.4 answer so when the
/// transfer failed.
pub fn answer_fault(endpoint: Endpoint, body: &[u8]) -> Option<EngineFault> {
    ABORT.find(body)?;
    let raw = Raw::parse(body).ok()?;
    match raw.kind() {
        JsonType::Array => raw.elements().find_map(|one| reported(endpoint, one)),
        _ => reported(endpoint, raw).or_else(|| aborted(endpoint, raw)),
    }
}

fn reported(endpoint: Endpoint, raw: Raw<'_>) -> Option<EngineFault> {
    let error = |raw: Raw<'_>, status| {
        let message = parse_error(status, raw).message;
        Some(EngineFault { status, message })
    };
    match endpoint {
        Endpoint::Messages => {
            let inner = raw.get("error").filter(|e| e.kind() == JsonType::Object)?;
            let kind = inner.get("type").and_then(Raw::as_str).unwrap_or_default();
            error(raw, anthropic_status(&kind))
        }
        Endpoint::Responses => match raw.get("type").and_then(Raw::as_str).as_deref() {
            Some("error") => error(raw, status_in(raw).unwrap_or(500)),
            Some("response.failed") => error(raw.get("response")?, 500),
            _ => raw
                .get("error")
                .filter(|e| e.kind() == JsonType::Object && raw.get("id").is_none())
                .and_then(|inner| error(raw, status_in(inner).unwrap_or(500))),
        },
        Endpoint::Chat | Endpoint::Completions | Endpoint::Generate => {
            if let Some(inner) = raw.get("error").filter(|e| !e.is_null()) {
                // `/generate` of 0.4 sends no code. The errors that it reports this way are
                // rejections.
                let default = if endpoint == Endpoint::Generate { 400 } else { 500 };
                return error(raw, status_in(inner).unwrap_or(default));
            }
            let finish = raw.get("meta_info")?.get("finish_reason")?;
            if finish.get("type")?.as_str()? != "abort" {
                return None;
            }
            error(finish, status_of(finish.get("status_code")?)?)
        }
    }
}

/// The failure of an answer or event with a choice that ended with `abort`.
fn aborted(endpoint: Endpoint, raw: Raw<'_>) -> Option<EngineFault> {
    if !matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
        return None;
    }
    let abort = |choice: Raw<'_>| {
        choice.get("finish_reason").is_some_and(|reason| reason.bytes() == b"\"abort\"")
    };
    raw.get("choices")?
        .elements()
        .any(abort)
        .then(|| EngineFault { status: 500, message: sanitize(ABORTED, 500) })
}

fn status_in(error: Raw<'_>) -> Option<u16> {
    status_of(error.get("code")?)
}

fn status_of(raw: Raw<'_>) -> Option<u16> {
    let status = raw.as_u64().or_else(|| raw.as_str()?.parse().ok())?;
    u16::try_from(status).ok().filter(|status| (400..600).contains(status))
}

/// The status that the engine maps to this type.
fn anthropic_status(kind: &str) -> u16 {
    match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_timeout_error" => 408,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "overloaded_error" => 503,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(endpoint: Endpoint, data: &str) -> Option<u16> {
        event_fault(endpoint, format!("data: {data}\n\n").as_bytes()).map(|fault| fault.status)
    }

    #[test]
    fn every_failure_format_inside_a_stream_is_detected() {
        use Endpoint::{Chat, Completions, Generate, Messages, Responses};
        for (endpoint, data, want) in [
            (
                Chat,
                r#"{"error": {"object":"error","message":"m","type":"INTERNAL_SERVER_ERROR","code":500}}"#,
                Some(500),
            ),
            (Completions, r#"{"error":{"message":"m","code":503}}"#, Some(503)),
            (Generate, r#"{"error":{"message":"m","code":400,"retryable":false}}"#, Some(400)),
            (Generate, r#"{"error":{"message":"m"}}"#, Some(400)),
            (
                Generate,
                r#"{"text":"","meta_info":{"finish_reason":{"type":"abort","message":"x","status_code":500}}}"#,
                Some(500),
            ),
            (
                Generate,
                r#"{"meta_info":{"finish_reason":{"type":"abort","message":"x","status_code":null}}}"#,
                None,
            ),
            (
                Responses,
                r#"{"type":"response.failed","response":{"id":"r","error":{"code":"server_error","message":"m"}}}"#,
                Some(500),
            ),
            (Responses, r#"{"type":"error","code":"429","message":"m"}"#, Some(429)),
            (Responses, r#"{"error":{"message":"m","code":400}}"#, Some(400)),
            (Responses, r#"{"type":"response.created","response":{"id":"r","error":null}}"#, None),
            (
                Messages,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
                Some(503),
            ),
            (Chat, r#"{"choices":[{"delta":{"content":"\"error\""}}]}"#, None),
            (Chat, r#"{"choices":[],"error":null}"#, None),
            (Chat, "[DONE]", None),
        ] {
            assert_eq!(status(endpoint, data), want, "{data}");
        }
    }

    #[test]
    fn an_abort_is_a_failure_only_before_the_first_token() {
        let event = br#"data: {"choices":[{"delta":{"content":""},"finish_reason":"abort"}]}"#;
        assert_eq!(event_fault(Endpoint::Chat, event), None);
        let fault = first_event_fault(Endpoint::Chat, event).unwrap();
        assert!(super::super::about_transfer(&fault.message));
    }

    #[test]
    fn an_aborted_answer_with_status_200_is_a_failure() {
        let aborted =
            br#"{"id":"x","choices":[{"message":{"content":null},"finish_reason":"abort"}]}"#;
        assert_eq!(answer_fault(Endpoint::Chat, aborted).unwrap().status, 500);
        let batch = br#"[{"meta_info":{"finish_reason":{"type":"stop"}}},
            {"meta_info":{"finish_reason":{"type":"abort","message":"KVTransferError","status_code":500}}}]"#;
        assert_eq!(answer_fault(Endpoint::Generate, batch).unwrap().message, "KVTransferError");
        let fine = br#"{"choices":[{"message":{"content":"\"abort\""},"finish_reason":"stop"}]}"#;
        assert_eq!(answer_fault(Endpoint::Chat, fine), None);
    }
}
