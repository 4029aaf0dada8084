//! The bootstrap server of a prefill, where decodes look up its ranks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::{Reply, plain, reply_json};
use crate::process::Process;

/// How long an entry of `/register_dp_rank` is kept.
const MAX_ENTRY_AGE: Duration = Duration::from_secs(120);
/// Maximum number of entries.
const MAX_ENTRIES: usize = 100_000;

/// The state of the bootstrap server.
#[derive(Debug)]
pub(crate) struct BootstrapRegistry {
    complete_at: Instant,
    ranks_by_room: Mutex<HashMap<u64, (u64, Instant)>>,
}

impl BootstrapRegistry {
    pub(crate) fn new(complete_at: Instant) -> BootstrapRegistry {
        BootstrapRegistry { complete_at, ranks_by_room: Mutex::default() }
    }

    fn is_complete(&self) -> bool {
        Instant::now() >= self.complete_at
    }

    pub(crate) fn remember(&self, room: u64, rank: u64) {
        let mut known = self.ranks_by_room.lock();
        if known.len() >= MAX_ENTRIES {
            known.retain(|_, (_, since)| since.elapsed() < MAX_ENTRY_AGE);
        }
        known.insert(room, (rank, Instant::now()));
    }

    fn rank_of(&self, room: u64) -> Option<u64> {
        let known = self.ranks_by_room.lock();
        known.get(&room).filter(|(_, since)| since.elapsed() < MAX_ENTRY_AGE).map(|(rank, _)| *rank)
    }
}

/// Answers one request to the bootstrap port.
pub(crate) fn answer(
    process: &Arc<Process>,
    request: &Request<()>,
    body: &Bytes,
) -> Response<Reply> {
    let old = process.is_0_4();
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => plain(StatusCode::OK, "OK"),
        (&Method::GET, "/route") if old => route_0_4(process, request.uri().query()),
        (&Method::GET, "/route") => route(process, request.uri().query()),
        (&Method::PUT, "/route") => plain(StatusCode::OK, "OK"),
        (_, "/route") => plain(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
        (&Method::POST, "/register_dp_rank") if !old => register(process, body),
        (&Method::POST, "/query_dp_ranks") if !old => query_ranks(process, body),
        _ => plain(StatusCode::NOT_FOUND, "404: Not Found"),
    }
}

/// The named query parameters, in order. `None` if one is missing or empty.
fn parameters<const N: usize>(query: Option<&str>, names: [&str; N]) -> Option<[i64; N]> {
    let mut values = [0; N];
    for (value, name) in values.iter_mut().zip(names) {
        let text = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
        *value = text.parse().ok()?;
    }
    Some(values)
}

fn rank_info(process: &Process, rank: i64) -> Option<Value> {
    let rank = process.ranks.get(usize::try_from(rank).ok()?)?;
    Some(json!({"rank_ip": rank.control.ip().to_string(), "rank_port": rank.control.port()}))
}

fn route(process: &Process, query: Option<&str>) -> Response<Reply> {
    let names = ["prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"];
    let Some([dp, cp, tp, pp]) = parameters(query, names) else {
        return plain(StatusCode::BAD_REQUEST, "Missing inputs for bootstrap server.");
    };
    if !process.registry.is_complete() {
        let text = "Prefill server not fully registered yet (0 workers registered).";
        return plain(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    if [dp, cp, tp, pp] == [-1; 4] {
        return reply_json(
            StatusCode::OK,
            &json!({
                "attn_tp_size": 1, "attn_cp_size": 1, "dp_size": process.config.dp_size,
                "pp_size": 1, "page_size": process.config.page_size,
                "kv_cache_dtype": process.config.kv_cache_dtype, "follow_bootstrap_room": true,
                "target_tp_rank": null, "target_tp_ranks": null, "target_cp_ranks": null,
                "target_pp_ranks": null, "required_dst_info_num": null,
                "required_prefill_response_num": null,
            }),
        );
    }
    match rank_info(process, dp).filter(|_| [cp, tp, pp] == [0; 3]) {
        Some(info) => reply_json(StatusCode::OK, &info),
        None => {
            let text = format!(
                "Bootstrap info not found for dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}"
            );
            plain(StatusCode::NOT_FOUND, text)
        }
    }
}

fn route_0_4(process: &Process, query: Option<&str>) -> Response<Reply> {
    let Some([engine_rank, group]) = parameters(query, ["engine_rank", "target_dp_group"]) else {
        return plain(StatusCode::BAD_REQUEST, "Missing inputs for bootstrap server.");
    };
    // The 0.4 server does not know that it is incomplete: sizes are null until a rank has
    // registered, and a rank that has not registered raises an unhandled KeyError.
    let full = process.registry.is_complete();
    if [engine_rank, group] == [-1; 2] {
        let size = |size: usize| if full { json!(size) } else { Value::Null };
        let info = json!({
            "prefill_tp_size": size(process.config.dp_size), "prefill_dp_size": size(process.config.dp_size),
        });
        return reply_json(StatusCode::OK, &info);
    }
    match rank_info(process, group).filter(|_| full && engine_rank == 0) {
        Some(info) => reply_json(StatusCode::OK, &info),
        None => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "500 Internal Server Error\n\nServer got itself in trouble",
        ),
    }
}

fn unsigned(value: Option<&Value>) -> Option<u64> {
    let value = value?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn register(process: &Process, body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let (room, rank) = (unsigned(body.get("bootstrap_room")), unsigned(body.get("dp_rank")));
    let (Some(room), Some(rank)) = (room, rank) else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error");
    };
    process.registry.remember(room, rank);
    plain(StatusCode::OK, "OK")
}

fn query_ranks(process: &Process, body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let rooms = body.get("bootstrap_rooms").and_then(Value::as_array);
    let known: serde_json::Map<String, Value> = rooms
        .into_iter()
        .flatten()
        .filter_map(|room| unsigned(Some(room)))
        .filter_map(|room| Some((room.to_string(), json!(process.registry.rank_of(room)?))))
        .collect();
    reply_json(StatusCode::OK, &Value::Object(known))
}
