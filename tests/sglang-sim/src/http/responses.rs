//! `/v1/responses`, reduced to the fields that clients need. `previous_response_id` works on the
//! engine that created the response.

use bytes::Bytes;
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};

use crate::process::Process;

use super::parse::{ParsedRequest, RequestError, chat_prompt};
use super::sequence::{Sequence, now_seconds, usage_of};
use super::stream::StreamState;
use super::{Reply, reply_json};

/// Maximum number of stored responses.
const MAX_RESPONSES: usize = 4096;

fn token() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// The id of a response: the request's `request_id`, or a generated one.
pub(crate) fn new_id(request: &ParsedRequest) -> String {
    let own = request.body["request_id"].as_str().map(str::to_owned);
    own.unwrap_or_else(|| format!("resp_{}", token()))
}

/// The prompt of a request. `None` if it has no input.
///
/// # Errors
/// `previous_response_id` is unknown to this engine.
pub(crate) fn prompt(process: &Process, body: &Value) -> Result<Option<Vec<u32>>, RequestError> {
    let mut messages = Vec::new();
    if let Some(previous) = body["previous_response_id"].as_str() {
        let known = process.responses.lock();
        let text =
            known.get(previous).ok_or_else(|| RequestError::NoSuchResponse(previous.into()))?;
        messages.push(json!({"role": "assistant", "content": text}));
    }
    match &body["input"] {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(list) => messages.extend(list.iter().cloned()),
        _ => return Ok(None),
    }
    let system = body.get("instructions").filter(|i| !i.is_null());
    Ok(chat_prompt(system, &Value::Array(messages)))
}

pub(crate) fn not_found(id: &str) -> Response<Reply> {
    let error = json!({
        "message": format!("Response with id '{id}' not found."), "type": "invalid_request_error",
        "param": null, "code": 404,
    });
    reply_json(StatusCode::NOT_FOUND, &json!({ "error": error }))
}

fn remember(process: &Process, request: &ParsedRequest, id: &str, text: &str) {
    if request.body["store"] == false {
        return;
    }
    let mut known = process.responses.lock();
    if known.len() >= MAX_RESPONSES {
        known.clear();
    }
    known.insert(id.to_owned(), text.to_owned());
}

fn message(id: &str, text: &str) -> Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "status": "completed",
        "content": [part(text)],
    })
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": null})
}

fn object(request: &ParsedRequest, id: &str, status: &str, output: Value, usage: Value) -> Value {
    let body = &request.body;
    let text = if output.as_array().is_some_and(|o| !o.is_empty()) {
        json!({"format": {"type": "text"}})
    } else {
        Value::Null
    };
    json!({
        "id": id, "object": "response", "created_at": now_seconds(), "model": request.model,
        "output": output, "status": status, "usage": usage, "parallel_tool_calls": true,
        "tool_choice": "auto", "tools": [], "error": null, "incomplete_details": null,
        "instructions": body["instructions"], "max_output_tokens": body["max_output_tokens"],
        "previous_response_id": body["previous_response_id"],
        "reasoning": {"effort": null, "summary": null}, "store": body["store"] != false,
        "temperature": body["temperature"], "text": text, "top_p": body["top_p"],
        "truncation": "disabled", "user": body["user"], "metadata": {},
    })
}

/// The body of a response that is not streamed.
pub(crate) fn whole(process: &Process, request: &ParsedRequest, sequence: &Sequence) -> Value {
    let id = new_id(request);
    remember(process, request, &id, &sequence.text);
    let usage = usage_of(sequence.prompt_tokens, sequence.ids.len(), false);
    let output = json!([message(&format!("msg_{}", token()), &sequence.text)]);
    object(request, &id, "completed", output, usage)
}

/// An event with its name and sequence number.
fn named(state: &StreamState, kind: &str, mut value: Value) -> Bytes {
    value["type"] = kind.into();
    value["sequence_number"] = state.number().into();
    Bytes::from(format!("event: {kind}\ndata: {value}\n\n"))
}

fn item_id(state: &StreamState) -> String {
    format!("item_{}", state.response_id.trim_start_matches("resp_"))
}

/// The events before the first token.
pub(crate) fn opening(state: &StreamState) -> Vec<Bytes> {
    let response =
        object(&state.request, &state.response_id, "in_progress", json!([]), Value::Null);
    let item = json!({
        "id": item_id(state), "type": "message", "role": "assistant", "status": "in_progress",
        "content": [],
    });
    vec![
        named(state, "response.created", json!({"response": response})),
        named(state, "response.in_progress", json!({"response": response})),
        named(state, "response.output_item.added", json!({"output_index": 0, "item": item})),
        named(
            state,
            "response.content_part.added",
            json!({
                "output_index": 0, "content_index": 0, "item_id": item_id(state), "part": part(""),
            }),
        ),
    ]
}

pub(crate) fn delta(state: &StreamState, new: &str) -> Vec<Bytes> {
    if new.is_empty() {
        return Vec::new();
    }
    let value = json!({
        "output_index": 0, "content_index": 0, "item_id": item_id(state), "delta": new,
        "logprobs": [],
    });
    vec![named(state, "response.output_text.delta", value)]
}

/// The events after the last token.
pub(crate) fn closing(state: &StreamState) -> Vec<Bytes> {
    let sequence = &state.sequences[0];
    let text = &sequence.text;
    let id = item_id(state);
    remember(state.process(), &state.request, &state.response_id, text);
    let output = json!([message(&id, text)]);
    let mut response = object(&state.request, &state.response_id, "completed", output, Value::Null);
    let (input, generated) = (sequence.prompt_tokens, sequence.ids.len());
    response["usage"] = json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": generated, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + generated,
    });
    let position = json!({"output_index": 0, "content_index": 0, "item_id": id});
    let with = |name: &str, value: Value| {
        let mut position = position.clone();
        position[name] = value;
        position
    };
    vec![
        named(state, "response.output_text.done", with("text", json!(text))),
        named(state, "response.content_part.done", with("part", part(text))),
        named(
            state,
            "response.output_item.done",
            json!({"output_index": 0, "item": message(&id, text)}),
        ),
        named(state, "response.completed", json!({"response": response})),
    ]
}
