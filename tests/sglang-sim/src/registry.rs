//! The bootstrap server of a prefill: where decodes look up its ranks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::{Reply, plain, reply_json};
use crate::life::Life;

/// How long `/register_dp_rank` is remembered.
const ENTRY_AGE: Duration = Duration::from_secs(120);
/// Entries at most, whatever their age.
const ENTRY_LIMIT: usize = 100_000;

/// What the registry holds.
#[derive(Debug)]
pub(crate) struct Registry {
    full_at: Instant,
    ranks_by_room: Mutex<HashMap<u64, (u64, Instant)>>,
}

impl Registry {
    pub(crate) fn new(full_at: Instant) -> Registry {
        Registry { full_at, ranks_by_room: Mutex::default() }
    }

    fn is_full(&self) -> bool {
        Instant::now() >= self.full_at
    }

    pub(crate) fn remember(&self, room: u64, rank: u64) {
        let mut known = self.ranks_by_room.lock().expect("nothing panics with the rooms");
        if known.len() >= ENTRY_LIMIT {
            known.retain(|_, (_, since)| since.elapsed() < ENTRY_AGE);
        }
        known.insert(room, (rank, Instant::now()));
    }

    fn rank_of(&self, room: u64) -> Option<u64> {
        let known = self.ranks_by_room.lock().expect("nothing panics with the rooms");
        known.get(&room).filter(|(_, since)| since.elapsed() < ENTRY_AGE).map(|(rank, _)| *rank)
    }
}

/// Answers one request to the bootstrap port.
pub(crate) fn answer(life: &Arc<Life>, request: &Request<()>, body: &Bytes) -> Response<Reply> {
    let old = life.is_old();
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => plain(StatusCode::OK, "OK"),
        (&Method::GET, "/route") if old => route_old(life, request.uri().query()),
        (&Method::GET, "/route") => route(life, request.uri().query()),
        (&Method::PUT, "/route") => plain(StatusCode::OK, "OK"),
        (_, "/route") => plain(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
        (&Method::POST, "/register_dp_rank") if !old => register(life, body),
        (&Method::POST, "/query_dp_ranks") if !old => query_ranks(life, body),
        _ => plain(StatusCode::NOT_FOUND, "404: Not Found"),
    }
}

/// The named query parameters, in order; `None` where one is missing or empty.
fn parameters<const N: usize>(query: Option<&str>, names: [&str; N]) -> Option<[i64; N]> {
    let mut values = [0; N];
    for (value, name) in values.iter_mut().zip(names) {
        let text = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
        *value = text.parse().ok()?;
    }
    Some(values)
}

fn rank_info(life: &Life, rank: i64) -> Option<Value> {
    let rank = life.ranks.get(usize::try_from(rank).ok()?)?;
    Some(json!({"rank_ip": rank.control.ip().to_string(), "rank_port": rank.control.port()}))
}

fn route(life: &Life, query: Option<&str>) -> Response<Reply> {
    let names = ["prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"];
    let Some([dp, cp, tp, pp]) = parameters(query, names) else {
        return plain(StatusCode::BAD_REQUEST, "Missing inputs for bootstrap server.");
    };
    if !life.registry.is_full() {
        let text = "Prefill server not fully registered yet (0 workers registered).";
        return plain(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    if [dp, cp, tp, pp] == [-1; 4] {
        return reply_json(
            StatusCode::OK,
            &json!({
                "attn_tp_size": 1, "attn_cp_size": 1, "dp_size": life.config.dp_size,
                "pp_size": 1, "page_size": life.config.page_size,
                "kv_cache_dtype": life.config.kv_cache_dtype, "follow_bootstrap_room": true,
                "target_tp_rank": null, "target_tp_ranks": null, "target_cp_ranks": null,
                "target_pp_ranks": null, "required_dst_info_num": null,
                "required_prefill_response_num": null,
            }),
        );
    }
    match rank_info(life, dp).filter(|_| [cp, tp, pp] == [0; 3]) {
        Some(info) => reply_json(StatusCode::OK, &info),
        None => {
            let text = format!(
                "Bootstrap info not found for dp_rank={dp} cp_rank={cp} tp_rank={tp} pp_rank={pp}"
            );
            plain(StatusCode::NOT_FOUND, text)
        }
    }
}

fn route_old(life: &Life, query: Option<&str>) -> Response<Reply> {
    let Some([engine_rank, group]) = parameters(query, ["engine_rank", "target_dp_group"]) else {
        return plain(StatusCode::BAD_REQUEST, "Missing inputs for bootstrap server.");
    };
    // The old server has no notion of being incomplete: sizes are null until a rank has come,
    // and a rank that has not come is an unhandled KeyError.
    let full = life.registry.is_full();
    if [engine_rank, group] == [-1; 2] {
        let size = |size: usize| if full { json!(size) } else { Value::Null };
        let info = json!({
            "prefill_tp_size": size(life.config.dp_size), "prefill_dp_size": size(life.config.dp_size),
        });
        return reply_json(StatusCode::OK, &info);
    }
    match rank_info(life, group).filter(|_| full && engine_rank == 0) {
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

fn register(life: &Life, body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let (room, rank) = (unsigned(body.get("bootstrap_room")), unsigned(body.get("dp_rank")));
    let (Some(room), Some(rank)) = (room, rank) else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error");
    };
    life.registry.remember(room, rank);
    plain(StatusCode::OK, "OK")
}

fn query_ranks(life: &Life, body: &Bytes) -> Response<Reply> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let rooms = body.get("bootstrap_rooms").and_then(Value::as_array);
    let known: serde_json::Map<String, Value> = rooms
        .into_iter()
        .flatten()
        .filter_map(|room| unsigned(Some(room)))
        .filter_map(|room| Some((room.to_string(), json!(life.registry.rank_of(room)?))))
        .collect();
    reply_json(StatusCode::OK, &Value::Object(known))
}
