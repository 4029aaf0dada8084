//! `/v1/messages`, reduced to the fields that clients need.

use bytes::Bytes;
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};

use super::parse::{ParsedRequest, chat_prompt};
use super::sequence::Sequence;
use super::{Reply, reply_json};

fn stop_reason(sequence: &Sequence) -> &'static str {
    match sequence.finish.as_ref().map(crate::leg::Finish::kind) {
        Some("length") => "max_tokens",
        _ => "end_turn",
    }
}

fn message_id() -> String {
    format!("msg_{:032x}", rand::rng().random::<u128>())
}

/// The engine hides its reasons behind one message.
pub(crate) fn error(code: u16) -> Response<Reply> {
    let message = if code == 400 { "Internal processing error" } else { "Internal server error" };
    let error = json!({"type": "internal_error", "message": message});
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    reply_json(status, &json!({"type": "error", "error": error}))
}

/// `/v1/messages/count_tokens`, which needs no peer.
pub(crate) fn count_tokens(body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let system = body.get("system").filter(|system| !system.is_null());
    match chat_prompt(system, &body["messages"]) {
        Some(prompt) => reply_json(StatusCode::OK, &json!({"input_tokens": prompt.len()})),
        None => {
            let error = json!({"type": "invalid_request_error", "message": "messages: missing"});
            reply_json(StatusCode::BAD_REQUEST, &json!({"type": "error", "error": error}))
        }
    }
}

/// The body of a response that is not streamed.
pub(crate) fn whole(request: &ParsedRequest, sequence: &Sequence) -> Value {
    json!({
        "id": message_id(), "type": "message", "role": "assistant",
        "content": [{"type": "text", "text": sequence.text}], "model": request.model,
        "stop_reason": stop_reason(sequence), "stop_sequence": null,
        "usage": {"input_tokens": sequence.prompt_tokens, "output_tokens": sequence.ids.len()},
    })
}

fn named(mut value: Value, kind: &str) -> Bytes {
    value["type"] = kind.into();
    Bytes::from(format!("event: {kind}\ndata: {value}\n\n"))
}

/// The events for new text. The first call also starts the message.
pub(crate) fn delta(request: &ParsedRequest, sequence: &Sequence, new: &str) -> Vec<Bytes> {
    let mut events = Vec::new();
    if sequence.ids.len() <= 1 {
        let message = json!({
            "id": message_id(), "type": "message", "role": "assistant", "content": [],
            "model": request.model,
            "usage": {"input_tokens": sequence.prompt_tokens, "output_tokens": 0},
        });
        events.push(named(json!({"message": message}), "message_start"));
        let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
        events.push(named(block, "content_block_start"));
    }
    if !new.is_empty() {
        let delta = json!({"index": 0, "delta": {"type": "text_delta", "text": new}});
        events.push(named(delta, "content_block_delta"));
    }
    events
}

pub(crate) fn stream_error() -> Bytes {
    let error = json!({"type": "api_error", "message": "Stream processing error"});
    named(json!({ "error": error }), "error")
}

/// The events at the end of a stream, also of a failed one.
pub(crate) fn closing(sequence: &Sequence) -> Vec<Bytes> {
    let mut events = Vec::new();
    if !sequence.ids.is_empty() {
        events.push(named(json!({"index": 0}), "content_block_stop"));
    }
    let usage =
        json!({"input_tokens": sequence.prompt_tokens, "output_tokens": sequence.ids.len()});
    let delta = json!({"delta": {"stop_reason": stop_reason(sequence)}, "usage": usage});
    events.push(named(delta, "message_delta"));
    events.push(named(json!({}), "message_stop"));
    events
}
