//! Health, settings, load and administration of an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::config::Role;
use crate::process::Process;
use crate::rank::Rank;
use crate::tokenizer;

use super::generation::error_object;
use super::parse::chat_prompt;
use super::sequence::now_seconds;
use super::{Reply, empty, plain, reply_json};

/// Generates one token without a transfer and checks once a second whether it came.
pub(crate) async fn health(process: &Arc<Process>) -> Response<Reply> {
    if !process.is_ready() {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    }
    let deadline = Instant::now() + process.config.timing.health_timeout;
    let before = process.stats.tokens_emitted.load(Relaxed);
    let answered = Arc::new(AtomicBool::new(false));
    let (probe, done) = (Arc::clone(process), Arc::clone(&answered));
    process.spawn(async move {
        probe.wait_for_scheduler().await;
        let _pass = probe.ranks[0].forward.lock().await;
        done.store(true, Relaxed);
    });
    while Instant::now() < deadline {
        sleep(process.config.timing.health_pause).await;
        // Any token of the scheduler counts.
        if answered.load(Relaxed) || process.stats.tokens_emitted.load(Relaxed) != before {
            return empty(StatusCode::OK);
        }
    }
    empty(StatusCode::SERVICE_UNAVAILABLE)
}

pub(crate) fn ready(process: &Process) -> Response<Reply> {
    empty(if process.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

pub(crate) fn server_info(process: &Process) -> Response<Reply> {
    let config = &process.config;
    let states: Vec<Value> = process
        .ranks
        .iter()
        .map(|_| {
            json!({
                "last_gen_throughput": 0.0, "max_running_requests": config.max_running_requests,
                "memory_usage": {"weight": 0.0, "kvcache": 0.0, "token_capacity": config.max_total_tokens},
            })
        })
        .collect();
    let mut info = json!({
        "model_path": config.model_path, "tokenizer_path": config.model_path,
        "served_model_name": config.model_name(), "host": config.host.to_string(),
        "api_key": config.api_key, "admin_api_key": config.admin_api_key,
        "port": config.port, "context_length": config.context_length,
        "disaggregation_mode": process.role().disaggregation_mode(),
        "disaggregation_bootstrap_port":
            process.bootstrap.map_or(config.default_bootstrap_port(), |address| address.port()),
        "disaggregation_transfer_backend": "mooncake",
        "page_size": config.page_size, "kv_cache_dtype": config.kv_cache_dtype,
        "max_running_requests": config.max_running_requests,
        "max_queued_requests": config.max_queued_requests,
        "max_total_num_tokens": config.max_total_tokens,
        "max_req_input_len": config.context_length.saturating_sub(6),
        "dp_size": config.dp_size, "tp_size": 1, "pp_size": config.pp_size, "nnodes": 1, "node_rank": 0,
        "enable_dp_attention": config.dp_size > 1, "enable_metrics": true, "status": "ready",
        "internal_states": states, "version": config.version.number(),
    });
    if !process.is_0_4() {
        let method =
            if process.role() == Role::Prefill { "follow_bootstrap_room" } else { "round_robin" };
        info["load_balance_method"] = json!(method);
        info["weight_version"] = json!("default");
        info["enable_pd_role_switch"] = json!(config.role_switch);
        if let Some(policy) = &config.decode_allocation_policy {
            info["disaggregation_decode_allocation_policy"] = json!(policy);
        }
    }
    reply_json(StatusCode::OK, &info)
}

pub(crate) fn model_info(process: &Process) -> Response<Reply> {
    let mut info = json!({
        "model_path": process.config.model_path, "tokenizer_path": process.config.model_path,
        "is_generation": true, "preferred_sampling_params": null,
    });
    if !process.is_0_4() {
        info["weight_version"] = json!("default");
        info["has_image_understanding"] = json!(false);
        info["has_audio_understanding"] = json!(false);
        info["model_type"] = json!("llama");
        info["architectures"] = json!(["LlamaForCausalLM"]);
    }
    reply_json(StatusCode::OK, &info)
}

fn card(process: &Process) -> Value {
    let name = process.config.model_name();
    let mut card = json!({
        "id": name, "object": "model", "created": now_seconds(), "owned_by": "sglang",
        "root": name, "max_model_len": process.config.context_length,
    });
    if !process.is_0_4() {
        card["parent"] = Value::Null;
    }
    card
}

pub(crate) fn models(process: &Process) -> Response<Reply> {
    reply_json(StatusCode::OK, &json!({"object": "list", "data": [card(process)]}))
}

/// The rest of a path, with its percent escapes decoded as Starlette does.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let escape = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *byte == b'%') {
            Some(decoded) => {
                out.push(decoded);
                rest = &after[2..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(crate) fn model(process: &Process, path: &str) -> Response<Reply> {
    let name = percent_decoded(path);
    if name == process.config.model_name().trim_start_matches('/')
        || name == process.config.model_name()
    {
        return reply_json(StatusCode::OK, &card(process));
    }
    let error = json!({
        "message": format!("The model '{name}' does not exist"), "type": "invalid_request_error",
        "param": "model", "code": "model_not_found",
    });
    reply_json(StatusCode::NOT_FOUND, &json!({ "error": error }))
}

/// Tokens in use, and tokens in use or reserved by waiting requests.
fn tokens(rank: &Rank) -> (usize, usize) {
    let used = rank.gauges.tokens.now();
    (used, used + rank.gauges.pending_tokens.now())
}

fn load(process: &Process, number: usize, rank: &Rank, wanted: &dyn Fn(&str) -> bool) -> Value {
    let (gauges, config) = (&rank.gauges, &process.config);
    let (used, total) = tokens(rank);
    let (running, waiting) = (gauges.running.now(), gauges.queued.now());
    let usage = used as f64 / config.max_total_tokens.max(1) as f64;
    let utilization = running as f64 / config.max_running_requests.max(1) as f64;
    let mut load = json!({
        "dp_rank": number, "num_running_reqs": running, "num_waiting_reqs": waiting,
        "num_used_tokens": used, "num_total_tokens": total, "num_total_reqs": running + waiting,
        "max_total_num_tokens": config.max_total_tokens, "token_usage": usage,
        "gen_throughput": 0.0, "cache_hit_rate": 0.0, "utilization": utilization,
        "max_running_requests": config.max_running_requests,
    });
    if wanted("disagg") {
        load["disaggregation"] = json!({
            "mode": process.role().disaggregation_mode(),
            "prefill_bootstrap_queue_reqs": gauges.bootstrap.now(),
            "prefill_inflight_queue_reqs": gauges.inflight.now(),
            "decode_prealloc_queue_reqs": gauges.prealloc.now(),
            "decode_transfer_queue_reqs": gauges.transfer.now(),
            "decode_retracted_queue_reqs": 0,
            "kv_transfer_speed_gb_s": 0.0, "kv_transfer_latency_ms": 0.0,
        });
    }
    if wanted("queues") {
        load["queues"] = json!({"waiting": waiting, "grammar": 0, "paused": 0, "retracted": 0});
    }
    if wanted("memory") {
        load["memory"] = json!({
            "weight_gb": 0.0, "kv_cache_gb": 0.0, "graph_gb": 0.0,
            "token_capacity": config.max_total_tokens,
        });
    }
    load
}

fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// `GET /v1/loads`.
pub(crate) fn loads(process: &Process, query: Option<&str>) -> Response<Reply> {
    const SECTIONS: [&str; 7] = ["core", "memory", "spec", "lora", "disagg", "queues", "all"];
    let include: Vec<&str> =
        parameter(query, "include").map_or(vec!["all"], |list| list.split(',').collect());
    let rank: Option<usize> = parameter(query, "dp_rank").and_then(|rank| rank.parse().ok());
    if include.iter().any(|section| !SECTIONS.contains(section)) {
        let message = format!("Invalid include sections: {include:?}. Valid options: {SECTIONS:?}");
        return reply_json(StatusCode::BAD_REQUEST, &error_object(&message, "400", 400));
    }
    let wanted = |section: &str| include.contains(&"all") || include.contains(&section);
    let loads: Vec<Value> = process
        .ranks
        .iter()
        .enumerate()
        .filter(|(number, _)| rank.is_none_or(|rank| rank == *number))
        .map(|(number, rank)| load(process, number, rank, &wanted))
        .collect();
    let sum = |name: &str| loads.iter().filter_map(|load| load[name].as_u64()).sum::<u64>();
    let mean = |name: &str| {
        let sum: f64 = loads.iter().filter_map(|load| load[name].as_f64()).sum();
        sum / loads.len().max(1) as f64
    };
    let aggregate = json!({
        "total_running_reqs": sum("num_running_reqs"),
        "total_waiting_reqs": sum("num_waiting_reqs"), "total_reqs": sum("num_total_reqs"),
        "total_used_tokens": sum("num_used_tokens"), "total_tokens": sum("num_total_tokens"),
        "avg_token_usage": mean("token_usage"), "avg_throughput": mean("gen_throughput"),
        "avg_utilization": mean("utilization"),
    });
    let answer = json!({
        "timestamp": now_seconds(), "version": process.config.version.number(),
        "dp_rank_count": loads.len(), "loads": loads, "aggregate": aggregate,
    });
    reply_json(StatusCode::OK, &answer)
}

/// `GET /get_load` of 0.4: one number.
pub(crate) fn load_0_4(process: &Process) -> Response<Reply> {
    let load: usize = process.ranks.iter().map(|rank| tokens(rank).1).sum();
    reply_json(StatusCode::OK, &json!({ "load": load }))
}

pub(crate) fn tokenize(process: &Process, body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let (prompt, messages) = (&body["prompt"], &body["messages"]);
    let (tokens, count) = match prompt {
        Value::String(text) => one(tokenizer::encode(text)),
        Value::Array(list) => {
            let texts = list.iter().filter_map(Value::as_str).map(tokenizer::encode);
            let lists: Vec<Vec<u32>> = texts.collect();
            (json!(lists), json!(lists.iter().map(Vec::len).collect::<Vec<_>>()))
        }
        _ => match chat_prompt(None, messages) {
            Some(ids) => one(ids),
            None => {
                let message = "Exactly one of 'prompt' or 'messages' must be provided.";
                let error = error_object(message, "Bad Request", 400);
                return reply_json(StatusCode::BAD_REQUEST, &error);
            }
        },
    };
    let length = process.config.context_length;
    let answer = json!({"tokens": tokens, "count": count, "max_model_len": length});
    reply_json(StatusCode::OK, &answer)
}

fn one(ids: Vec<u32>) -> (Value, Value) {
    let count = ids.len();
    (json!(ids), json!(count))
}

pub(crate) fn detokenize(body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value| -> Option<String> {
        let ids = value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok());
        Some(tokenizer::decode(&ids.collect::<Option<Vec<u32>>>()?))
    };
    let tokens = &body["tokens"];
    let nested = tokens.as_array().is_some_and(|list| list.first().is_some_and(Value::is_array));
    let answer = if nested {
        tokens
            .as_array()
            .map(|list| list.iter().map(text).collect::<Option<Vec<_>>>())
            .and_then(|texts| texts.map(|texts| json!(texts)))
    } else {
        text(tokens).map(|text| json!(text))
    };
    match answer {
        Some(text) => reply_json(StatusCode::OK, &json!({ "text": text })),
        None => {
            let error = error_object("Invalid 'tokens'.", "Bad Request", 400);
            reply_json(StatusCode::BAD_REQUEST, &error)
        }
    }
}

pub(crate) fn flush_cache(process: &Process) -> Response<Reply> {
    if process.leg_count() > 0 {
        return plain(StatusCode::BAD_REQUEST, "Flush cache failed.\n");
    }
    process.ranks.iter().for_each(|rank| rank.prefixes.lock().clear());
    let text = "Cache flushed.\nPlease check backend logs for more details. (When there are \
                running or waiting requests, the operation will not be performed.)\n";
    plain(StatusCode::OK, text)
}

/// `POST /pd_role_switch`: an idle prefill becomes a decode, and the other way round.
pub(crate) fn switch_role(process: &Process, body: &Bytes) -> Response<Reply> {
    let refuse = |message: &str| {
        reply_json(StatusCode::BAD_REQUEST, &json!({"success": false, "message": message}))
    };
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let role = match body["new_role"].as_str() {
        Some("prefill") => Role::Prefill,
        Some("decode") => Role::Decode,
        _ => return refuse("new_role must be prefill or decode"),
    };
    if !process.config.role_switch {
        return refuse("--enable-pd-role-switch is not set on this instance");
    }
    match process.switch_role(role) {
        true => reply_json(StatusCode::OK, &json!({"success": true, "message": ""})),
        false => refuse("the instance is not idle"),
    }
}

pub(crate) fn abort_request(process: &Process, body: &Bytes) -> Response<Reply> {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        let error = error_object("1 validation error", "Bad Request", 400);
        return reply_json(StatusCode::BAD_REQUEST, &error);
    };
    let rid = body["rid"].as_str().unwrap_or("");
    let all = body["abort_all"] == true;
    let matched = process.abort(rid, all);
    process.recorder.abort(rid.to_owned(), all, matched);
    empty(StatusCode::OK)
}
