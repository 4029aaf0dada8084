//! `/v1/responses` in its smallest real shape, with `previous_response_id` known to the engine
//! that gave the answer.

use bytes::Bytes;
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};

use crate::life::Life;

use super::ask::{Ask, Refusal, chat_prompt};
use super::sequence::{Sequence, now_seconds, usage_of};
use super::stream::Feed;
use super::{Reply, reply_json};

/// Answers that are remembered, at most.
const REMEMBERED: usize = 4096;

fn token() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// The id of an answer: the request's own, or a new one.
pub(crate) fn new_id(ask: &Ask) -> String {
    let own = ask.body["request_id"].as_str().map(str::to_owned);
    own.unwrap_or_else(|| format!("resp_{}", token()))
}

/// The prompt of a request; `None` if it has no input.
///
/// # Errors
/// It continues a response that this engine has not given.
pub(crate) fn prompt(life: &Life, body: &Value) -> Result<Option<Vec<u32>>, Refusal> {
    let mut messages = Vec::new();
    if let Some(previous) = body["previous_response_id"].as_str() {
        let known = life.responses.lock().expect("nothing panics with the responses");
        let text = known.get(previous).ok_or_else(|| Refusal::NoSuchResponse(previous.into()))?;
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

fn remember(life: &Life, ask: &Ask, id: &str, text: &str) {
    if ask.body["store"] == false {
        return;
    }
    let mut known = life.responses.lock().expect("nothing panics with the responses");
    if known.len() >= REMEMBERED {
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

fn object(ask: &Ask, id: &str, status: &str, output: Value, usage: Value) -> Value {
    let body = &ask.body;
    let text = if output.as_array().is_some_and(|o| !o.is_empty()) {
        json!({"format": {"type": "text"}})
    } else {
        Value::Null
    };
    json!({
        "id": id, "object": "response", "created_at": now_seconds(), "model": ask.model,
        "output": output, "status": status, "usage": usage, "parallel_tool_calls": true,
        "tool_choice": "auto", "tools": [], "error": null, "incomplete_details": null,
        "instructions": body["instructions"], "max_output_tokens": body["max_output_tokens"],
        "previous_response_id": body["previous_response_id"],
        "reasoning": {"effort": null, "summary": null}, "store": body["store"] != false,
        "temperature": body["temperature"], "text": text, "top_p": body["top_p"],
        "truncation": "disabled", "user": body["user"], "metadata": {},
    })
}

/// The answer in one piece.
pub(crate) fn whole(life: &Life, ask: &Ask, sequence: &Sequence) -> Value {
    let id = new_id(ask);
    remember(life, ask, &id, &sequence.text);
    let usage = usage_of(sequence.prompt_tokens, sequence.ids.len(), false);
    let output = json!([message(&format!("msg_{}", token()), &sequence.text)]);
    object(ask, &id, "completed", output, usage)
}

/// An event with its name and number.
fn named(feed: &Feed, kind: &str, mut value: Value) -> Bytes {
    value["type"] = kind.into();
    value["sequence_number"] = feed.number().into();
    Bytes::from(format!("event: {kind}\ndata: {value}\n\n"))
}

fn item_id(feed: &Feed) -> String {
    format!("item_{}", feed.response_id.trim_start_matches("resp_"))
}

/// The events before the first token.
pub(crate) fn opening(feed: &Feed) -> Vec<Bytes> {
    let response = object(&feed.ask, &feed.response_id, "in_progress", json!([]), Value::Null);
    let item = json!({
        "id": item_id(feed), "type": "message", "role": "assistant", "status": "in_progress",
        "content": [],
    });
    vec![
        named(feed, "response.created", json!({"response": response})),
        named(feed, "response.in_progress", json!({"response": response})),
        named(feed, "response.output_item.added", json!({"output_index": 0, "item": item})),
        named(
            feed,
            "response.content_part.added",
            json!({
                "output_index": 0, "content_index": 0, "item_id": item_id(feed), "part": part(""),
            }),
        ),
    ]
}

pub(crate) fn delta(feed: &Feed, new: &str) -> Vec<Bytes> {
    if new.is_empty() {
        return Vec::new();
    }
    let value = json!({
        "output_index": 0, "content_index": 0, "item_id": item_id(feed), "delta": new,
        "logprobs": [],
    });
    vec![named(feed, "response.output_text.delta", value)]
}

/// The events after the last token.
pub(crate) fn closing(feed: &Feed) -> Vec<Bytes> {
    let sequence = &feed.sequences[0];
    let text = &sequence.text;
    let id = item_id(feed);
    remember(feed.life(), &feed.ask, &feed.response_id, text);
    let output = json!([message(&id, text)]);
    let mut response = object(&feed.ask, &feed.response_id, "completed", output, Value::Null);
    let (input, generated) = (sequence.prompt_tokens, sequence.ids.len());
    response["usage"] = json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": generated, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + generated,
    });
    let place = json!({"output_index": 0, "content_index": 0, "item_id": id});
    let with = |name: &str, value: Value| {
        let mut place = place.clone();
        place[name] = value;
        place
    };
    vec![
        named(feed, "response.output_text.done", with("text", json!(text))),
        named(feed, "response.content_part.done", with("part", part(text))),
        named(
            feed,
            "response.output_item.done",
            json!({"output_index": 0, "item": message(&id, text)}),
        ),
        named(feed, "response.completed", json!({"response": response})),
    ]
}
