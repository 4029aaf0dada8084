//! The law of what engines answer: `/server_info`, the registry, loads, results and errors.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use super::is_json;
use crate::fleet::{EngineInfo, EngineLoad};
use crate::sglang::fault::{self, MAX_MESSAGE};
use crate::sglang::info::{RouteParams, public_server_info, server_info};
use crate::sglang::loads::LoadEndpoint;
use crate::sglang::logprob::PromptLogprobs;
use crate::sglang::ranks::{MAX_RANKS, RegisteredRanks, control_address};
use crate::sglang::sse::{self, Splitter};
use crate::sglang::usage::{AnswerReport, MAX_ANSWER};
use crate::sglang::{Endpoint, merge, response};

/// Answers of engines to any query, with the endpoint and the status chosen by the first byte: what is read
/// of them is what another parser reads, what is made of them is JSON, and clients see nothing private.
pub fn answer(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let endpoint = Endpoint::ALL[usize::from(*first) % Endpoint::ALL.len()];
    info(body);
    registry(body);
    loads(body);
    report(body);
    error(endpoint, 400 + u16::from(*first), body);
    result(endpoint, body);
}

fn info(body: &[u8]) {
    let info = EngineInfo::from_server_info(body);
    let public = public_server_info(body);
    assert_eq!(info.is_some(), public.is_some());
    let both = server_info(&[Bytes::copy_from_slice(body)], &[Bytes::copy_from_slice(body)]);
    assert!(is_json(&both), "{both:?}");
    let (Some(info), Some(public)) = (info, public) else { return };
    assert!(is_json(body), "read, but not JSON");
    assert!(is_json(&public) && public.len() <= body.len(), "{public:?}");
    assert_eq!(public_server_info(&public).as_ref(), Some(&public), "it is public already");
    if let Ok(public) = serde_json::from_slice::<Value>(&public) {
        is_public("", &public);
    }
    if let Ok(both) = serde_json::from_slice::<Value>(&both) {
        let states = both["internal_states"].as_array().expect("a list");
        assert!(!states.is_empty() && states.iter().all(Value::is_object));
    }
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return };
    let places = [Some(&value), value.get("server_args"), value.pointer("/internal_states/0")];
    let find = |key| {
        let mut values = places.into_iter().flatten().filter_map(|place| place.get(key));
        values.find(|value| !value.is_null())
    };
    assert_eq!(info.version.as_deref(), find("version").and_then(Value::as_str));
    assert_eq!(info.model_path.as_deref(), find("model_path").and_then(Value::as_str));
    assert_eq!(info.role_switch, find("enable_pd_role_switch").and_then(Value::as_bool));
    let page_size = find("page_size").and_then(Value::as_u64);
    assert_eq!(info.page_size.map(u64::from), page_size.filter(|n| u32::try_from(*n).is_ok()));
}

/// No text of a member whose name says that it is private, and no port.
fn is_public(name: &str, value: &Value) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| is_public(name, value)),
        Value::Array(items) => items.iter().for_each(|item| is_public(name, item)),
        Value::String(text) => {
            let private = ["key", "password", "secret", "host", "addr", "url", "file", "command"];
            assert!(!private.iter().any(|word| name.contains(word)), "{name}: {text}");
        }
        Value::Number(number) => assert!(!name.ends_with("_port"), "{name}: {number}"),
        _ => {}
    }
}

fn registry(body: &[u8]) {
    let _ = (EngineInfo::from_route(body), control_address(body));
    for form in [RouteParams::Ranks, RouteParams::DpGroup] {
        let Some(ranks) = RegisteredRanks::read(form, body) else { continue };
        let queries: Vec<String> = ranks.queries().collect();
        assert!((1..=MAX_RANKS).contains(&queries.len()));
        assert!(queries.iter().all(|query| query.starts_with("/route?")));
    }
}

fn loads(body: &[u8]) {
    for form in LoadEndpoint::ALL {
        let Some(report) = form.read(body) else { continue };
        assert!(!report.all.is_empty());
        assert!(report.all.token_usage.is_none_or(|usage| (0.0..=1e3).contains(&usage)));
        if report.ranks.is_empty() {
            continue;
        }
        let sum = |count: fn(&EngineLoad) -> Option<u64>| {
            report.ranks.iter().filter_map(count).reduce(u64::saturating_add)
        };
        assert_eq!(sum(|rank| rank.queued), report.all.queued);
        assert_eq!(sum(|rank| rank.total_tokens), report.all.total_tokens);
        let _ = report.all.requests();
    }
}

fn report(body: &[u8]) {
    let report = AnswerReport::of(body);
    for ms in [report.queue_ms, report.compute_ms, report.total_ms] {
        assert!(ms.value().is_none_or(|ms| ms >= 0.0), "{ms:?}");
    }
    // Names are compared as they are written, since engines escape no letter of them: one with an escape is
    // not read.
    if body.len() > MAX_ANSWER || body.contains(&b'\\') {
        return;
    }
    let Ok(Value::Object(answer)) = serde_json::from_slice(body) else { return };
    let usage = answer.get("meta_info").or_else(|| answer.get("usage"));
    if let Some(tokens) = usage.and_then(|usage| usage.get("prompt_tokens")?.as_u64()) {
        assert_eq!(report.prompt_tokens.value(), Some(tokens));
    }
}

fn error(endpoint: Endpoint, status: u16, body: &[u8]) {
    let error = fault::engine_error(status, body);
    assert!(!error.message.is_empty() && error.message.len() <= 2 * MAX_MESSAGE);
    assert!(is_json(&error.body(endpoint)));
    let mut splitter = Splitter::default();
    splitter.push(error.events(endpoint));
    while let Some(event) = splitter.next() {
        let event = event.expect("a message is short");
        let data: Cow<'_, [u8]> = sse::data(&event).expect("each event has a payload");
        assert!(sse::is_done(&event) || is_json(&data), "{event:?}");
    }
    assert!(splitter.rest().is_empty());
}

/// A whole answer to a request: alone, as that of two samples, and as that of both legs.
fn result(endpoint: Endpoint, body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    if let Some(fault) = fault::answer_fault(endpoint, &body) {
        assert!((400..600).contains(&fault.status) && !fault.message.is_empty());
    }
    assert!(response::id(&body).is_none_or(|id| id.len() <= response::MAX_ID));
    assert_eq!(merge::json(endpoint, 1, None, std::slice::from_ref(&body)), Ok(body.clone()));
    for batch in [None, Some(1), Some(2)] {
        if let Ok(merged) = merge::json(endpoint, 2, batch, &[body.clone(), body.clone()]) {
            assert!(is_json(&merged), "{merged:?}");
        }
    }
    if let Ok(prompt) = PromptLogprobs::from_prefill(endpoint, &body)
        && let Ok(merged) = prompt.merge_json(&body)
    {
        assert!(is_json(&merged), "{merged:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::inputs;

    #[test]
    fn bytes_near_answers_keep_the_law() {
        inputs::try_law("answer", super::answer, 20_000);
    }
}
