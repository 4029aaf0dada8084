//! `/sim/*`: what tests ask of an engine that runs as a process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::ledger::{Abort, KvTraffic, Received};
use crate::life::Life;
use crate::script::Script;

use super::{Reply, reply_json};

pub(crate) fn answer(life: &Arc<Life>, head: &Request<()>, body: &Bytes) -> Response<Reply> {
    let done = || reply_json(StatusCode::OK, &json!({"ok": true}));
    match (head.method(), head.uri().path()) {
        (&Method::GET, "/sim/received") => {
            reply_json(StatusCode::OK, &received_json(&life.ledger.received()))
        }
        (&Method::GET, "/sim/aborts") => {
            reply_json(StatusCode::OK, &aborts_json(&life.ledger.aborts()))
        }
        (&Method::GET, "/sim/kv") => reply_json(StatusCode::OK, &kv(life)),
        (&Method::POST, "/sim/script") => match script(life, body) {
            Ok(()) => done(),
            Err(reason) => reply_json(StatusCode::BAD_REQUEST, &json!({ "error": reason })),
        },
        (&Method::POST, "/sim/reset") => {
            life.ledger.reset();
            if let Some(core) = life.core.upgrade() {
                core.playbook.clear();
            }
            life.freeze_scheduler(false);
            done()
        }
        _ => reply_json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
    }
}

/// One script or a list of them.
fn script(life: &Life, body: &Bytes) -> Result<(), String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let scripts: Vec<Script> = match value {
        Value::Array(_) => serde_json::from_value(value),
        one => serde_json::from_value(one).map(|script| vec![script]),
    }
    .map_err(|error| error.to_string())?;
    let core = life.core.upgrade().ok_or("the engine is going")?;
    scripts.into_iter().for_each(|script| core.playbook.add(script));
    Ok(())
}

fn kv(life: &Life) -> Value {
    let ranks: Vec<Value> = life
        .ranks
        .iter()
        .map(|rank| {
            let counts = &rank.counts;
            json!({
                "control": rank.control.to_string(), "running": counts.running.now(),
                "running_peak": counts.running.peak(), "queued": counts.queued.now(),
                "queued_peak": counts.queued.peak(), "bootstrap": counts.bootstrap.now(),
                "inflight": counts.inflight.now(), "prealloc": counts.prealloc.now(),
                "transfer": counts.transfer.now(), "tokens": counts.tokens.now(),
                "tokens_peak": counts.tokens.peak(),
            })
        })
        .collect();
    json!({
        "peers": kv_json(&life.ledger.kv_traffic()), "rooms": life.ledger.rooms(),
        "data": life.data.map(|address| address.to_string()),
        "bootstrap": life.bootstrap.map(|address| address.to_string()), "ranks": ranks,
    })
}

/// Headers as JSON; a repeated header becomes an array.
fn headers_json(headers: &HeaderMap) -> Value {
    let mut map = serde_json::Map::new();
    for name in headers.keys() {
        let mut values = headers
            .get_all(name)
            .iter()
            .map(|value| Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned()));
        let first = values.next().unwrap_or(Value::Null);
        let rest: Vec<Value> = values.collect();
        let value = if rest.is_empty() {
            first
        } else {
            Value::Array(std::iter::once(first).chain(rest).collect())
        };
        map.insert(name.to_string(), value);
    }
    Value::Object(map)
}

/// `GET /sim/received`.
fn received_json(received: &[Received]) -> Value {
    let list: Vec<Value> = received
        .iter()
        .map(|r| {
            json!({
                "sequence": r.sequence, "at_ms": r.at_ms, "method": r.method.as_str(),
                "path": r.uri.path(), "query": r.uri.query(), "headers": headers_json(&r.headers),
                "body": String::from_utf8_lossy(&r.body), "rids": r.rids, "rooms": r.rooms,
                "outcome": r.outcome,
            })
        })
        .collect();
    Value::Array(list)
}

/// `GET /sim/aborts`.
fn aborts_json(aborts: &[Abort]) -> Value {
    let list: Vec<Value> = aborts
        .iter()
        .map(|a| {
            json!({"at_ms": a.at_ms, "rid": a.rid, "abort_all": a.abort_all, "matched": a.matched})
        })
        .collect();
    Value::Array(list)
}

/// The `peers` of `GET /sim/kv`.
fn kv_json(kv: &BTreeMap<IpAddr, KvTraffic>) -> Value {
    let map = kv
        .iter()
        .map(|(peer, t)| {
            let value = json!({
                "sent_bytes": t.sent_bytes, "received_bytes": t.received_bytes,
                "sent_transfers": t.sent_transfers, "received_transfers": t.received_transfers,
                "connections": t.connections, "corrupt_transfers": t.corrupt_transfers,
            });
            (peer.to_string(), value)
        })
        .collect();
    Value::Object(map)
}
