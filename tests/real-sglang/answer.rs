//! The content of an answer, without what differs between runs: ids, times, cache hits.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use http::StatusCode;
use router_tests::Client;
use router_tests::client::Stream;
use router_tests::sse::Event;
use serde_json::Value;

use crate::requests::RequestCase;

/// Fields that describe one run and not the answer.
const VOLATILE_FIELDS: [&str; 13] = [
    "id",
    "created",
    "created_at",
    "e2e_latency",
    "inference_time",
    "queue_time",
    "cached_tokens",
    "cached_tokens_details",
    "prompt_tokens_details",
    "input_tokens_details",
    "cache_read_input_tokens",
    "completed_at",
    "decode_throughput",
];

/// An answer, as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The body. For a stream: its merged choices, then all other events.
    pub(crate) body: Vec<Value>,
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(client: &Client, case: &RequestCase) -> Answer {
    read_answer(&case.name, client.open(case.path, &case.body).await).await
}

/// Reads the rest of an answer.
pub(crate) async fn read_answer(name: &str, stream: Stream) -> Answer {
    let status = stream.status;
    let is_stream = stream
        .headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if !is_stream {
        let answer = stream.answer().await;
        // Errors of a router may be plain text.
        let body = serde_json::from_slice(&answer.body).unwrap_or_else(|_| answer.text().into());
        return Answer { status, body: vec![without_volatile_fields(body)] };
    }
    let (events, end) = stream.events().await;
    assert_eq!(end, router_tests::client::End::Clean, "{name}: {events:?}");
    Answer { status, body: merge_events(events.iter().filter(|event| !event.is_done())) }
}

/// Merges the events of a stream into one answer: how text is split into events, and the order of
/// choices, vary between runs.
fn merge_events<'e>(events: impl Iterator<Item = &'e Event>) -> Vec<Value> {
    let mut choices: BTreeMap<u64, Value> = BTreeMap::new();
    let mut rest = Vec::new();
    for event in events {
        let event = without_volatile_fields(event.json());
        let choice = &event["choices"][0];
        if let Some(index) = choice["index"].as_u64() {
            match choices.entry(index) {
                Entry::Vacant(place) => _ = place.insert(choice.clone()),
                Entry::Occupied(mut place) => append(place.get_mut(), choice),
            }
        } else if event.get("meta_info").is_some() {
            // Every event of /generate contains the whole answer so far.
            choices.insert(event["index"].as_u64().unwrap_or_default(), event);
        } else {
            rest.push(event);
        }
    }
    choices.into_values().chain(rest).collect()
}

/// Adds the next piece of a choice: texts and lists are appended, null is replaced.
fn append(so_far: &mut Value, piece: &Value) {
    match (so_far, piece) {
        (_, Value::Null) => {}
        (Value::String(text), Value::String(more)) => text.push_str(more),
        (Value::Array(items), Value::Array(more)) => items.extend(more.iter().cloned()),
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                append(fields.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (other, value) => *other = value.clone(),
    }
}

/// The value without volatile fields. Floats are rounded to 0.001, because batches compute them
/// with small differences.
fn without_volatile_fields(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(name, _)| !VOLATILE_FIELDS.contains(&name.as_str()) && !name.ends_with("_ts"))
            .map(|(name, value)| (name, without_volatile_fields(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_volatile_fields).collect(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => Value::from((float * 1e3).round() / 1e3),
            _ => Value::Number(number),
        },
        other => other,
    }
}

/// The text of the whole answer.
pub(crate) fn text(answer: &Answer) -> String {
    let texts = answer.body.iter().map(|part| {
        let choice = &part["choices"][0];
        [&part["text"], &choice["text"], &choice["message"]["content"], &part["delta"]["content"]]
            .iter()
            .filter_map(|text| text.as_str())
            .collect::<String>()
    });
    texts.collect()
}
