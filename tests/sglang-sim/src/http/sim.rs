//! `/sim/*`: inspection and scripts for tests that run the engine as a process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::process::Process;
use crate::recorder::{Abort, KvTraffic, Received};
use crate::script::Script;

use super::{Reply, reply_json};

pub(crate) fn answer(process: &Arc<Process>, head: &Request<()>, body: &Bytes) -> Response<Reply> {
    let done = || reply_json(StatusCode::OK, &json!({"ok": true}));
    match (head.method(), head.uri().path()) {
        (&Method::GET, "/sim/received") => {
            reply_json(StatusCode::OK, &received_json(&process.recorder.received()))
        }
        (&Method::GET, "/sim/aborts") => {
            reply_json(StatusCode::OK, &aborts_json(&process.recorder.aborts()))
        }
        (&Method::GET, "/sim/kv") => reply_json(StatusCode::OK, &kv(process)),
        (&Method::POST, "/sim/script") => match script(process, body) {
            Ok(()) => done(),
            Err(reason) => reply_json(StatusCode::BAD_REQUEST, &json!({ "error": reason })),
        },
        (&Method::POST, "/sim/reset") => {
            process.recorder.reset();
            if let Some(supervisor) = process.supervisor.upgrade() {
                supervisor.scripts.clear();
            }
            process.freeze_scheduler(false);
            done()
        }
        _ => reply_json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
    }
}

/// One script or a list of them.
fn script(process: &Process, body: &Bytes) -> Result<(), String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let scripts: Vec<Script> = match value {
        Value::Array(_) => serde_json::from_value(value),
        one => serde_json::from_value(one).map(|script| vec![script]),
    }
    .map_err(|error| error.to_string())?;
    let supervisor = process.supervisor.upgrade().ok_or("the engine is shutting down")?;
    scripts.into_iter().for_each(|script| supervisor.scripts.add(script));
    Ok(())
}

fn kv(process: &Process) -> Value {
    let ranks: Vec<Value> = process
        .ranks
        .iter()
        .map(|rank| {
            let gauges = &rank.gauges;
            json!({
                "control": rank.control.to_string(), "running": gauges.running.now(),
                "running_peak": gauges.running.peak(), "queued": gauges.queued.now(),
                "queued_peak": gauges.queued.peak(), "bootstrap": gauges.bootstrap.now(),
                "inflight": gauges.inflight.now(), "prealloc": gauges.prealloc.now(),
                "transfer": gauges.transfer.now(), "tokens": gauges.tokens.now(),
                "tokens_peak": gauges.tokens.peak(),
            })
        })
        .collect();
    json!({
        "peers": kv_json(&process.recorder.kv_traffic()), "rooms": process.recorder.rooms(),
        "data": process.data.map(|address| address.to_string()),
        "bootstrap": process.bootstrap.map(|address| address.to_string()), "ranks": ranks,
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
