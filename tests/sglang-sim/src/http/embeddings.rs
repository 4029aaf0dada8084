//! `/v1/embeddings`, which only an ordinary server serves.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::config::Role;
use crate::model;
use crate::tokenizer;

use super::generation::error_object;
use super::{Exchange, Reply, outcome_of, reply_json};

const DIMENSIONS: u64 = 16;

fn inputs(value: &Value) -> Option<Vec<Vec<u32>>> {
    let ids = |v: &Value| -> Option<Vec<u32>> {
        v.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    match value {
        Value::String(text) => Some(vec![tokenizer::encode(text)]),
        Value::Array(list) if list.first()?.is_string() => {
            list.iter().map(|t| t.as_str().map(tokenizer::encode)).collect()
        }
        Value::Array(list) if list.first()?.is_array() => list.iter().map(ids).collect(),
        Value::Array(_) => Some(vec![ids(value)?]),
        _ => None,
    }
}

/// A vector of length one that depends on the whole input.
fn embedding(prompt: &[u32]) -> Vec<f64> {
    let prompt_hash = model::hash_prompt(prompt);
    let raw: Vec<f64> = (0..DIMENSIONS)
        .map(|position| (model::mix(prompt_hash ^ position << 17) % 2001) as f64 / 1000.0 - 1.0)
        .collect();
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-9);
    raw.into_iter().map(|x| x / length).collect()
}

pub(crate) async fn answer(exchange: &Exchange) -> Response<Reply> {
    let response = embed(exchange).await;
    exchange.record.outcome(outcome_of(response.status()));
    response
}

async fn embed(exchange: &Exchange) -> Response<Reply> {
    let process = &exchange.process;
    let refuse = |message: &str| {
        let error = error_object(message, "BadRequestError", 400);
        reply_json(StatusCode::BAD_REQUEST, &error)
    };
    let body: Value = serde_json::from_slice(&exchange.body).unwrap_or_default();
    let Some(inputs) = inputs(&body["input"]) else { return refuse("Input cannot be empty") };
    if process.role() != Role::Unified {
        return refuse(
            "Invalid request: Disaggregated request received without bootstrap room id.",
        );
    }
    process.wait_for_scheduler().await;
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            json!({"embedding": embedding(input), "index": index, "object": "embedding"})
        })
        .collect();
    let usage = super::sequence::usage_of(tokens, 0, process.is_0_4());
    let model = body["model"].as_str().unwrap_or("default");
    let value = json!({"data": data, "model": model, "object": "list", "usage": usage});
    reply_json(StatusCode::OK, &value)
}
