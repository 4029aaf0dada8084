//! The fields of a request that say where each sequence runs: request ids, bootstrap fields, DP
//! rank.

use http::HeaderMap;
use rand::Rng;
use serde_json::Value;

use crate::leg::Room;
use crate::process::Process;

use super::parse::{Api, RequestError, value_error};

/// The number of sequences, and whether the engine treats them as a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchShape {
    pub(crate) batch: bool,
    pub(crate) prompts: usize,
    pub(crate) n: usize,
}

/// The rendezvous fields, one element per sequence.
#[derive(Debug)]
pub(crate) struct RendezvousFields {
    pub(crate) rids: Vec<String>,
    pub(crate) rooms: Vec<Option<Room>>,
    pub(crate) hosts: Vec<Option<String>>,
    pub(crate) ports: Vec<Option<u16>>,
    pub(crate) routed_rank: Option<u64>,
}

impl RendezvousFields {
    /// Reads the fields and spreads them over a batch as the engine does. `listed` is true if the
    /// prompts came as a list.
    ///
    /// # Errors
    /// The engine rejects the fields or raises an exception.
    pub(crate) fn read(
        process: &Process,
        api: Api,
        headers: &HeaderMap,
        body: &Value,
        listed: bool,
        shape: BatchShape,
    ) -> Result<RendezvousFields, RequestError> {
        let host = |value: &Value, _: usize| value.as_str().map(str::to_owned);
        let port = |value: &Value, _: usize| u16::try_from(integer(value)?).ok();
        let number = |value: &Value, offset: usize| {
            Some(room(integer(value)?.saturating_add(offset as u128)))
        };
        Ok(RendezvousFields {
            rids: rids(body, listed, shape.prompts, shape.n)?,
            rooms: spread(process, &body["bootstrap_room"], shape, number)?,
            hosts: spread(process, &body["bootstrap_host"], shape, host)?,
            ports: spread(process, &body["bootstrap_port"], shape, port)?,
            routed_rank: routed_rank(process, api, body, headers)?,
        })
    }
}

/// A number, or a string that contains one, as the engine's models accept it.
fn integer(value: &Value) -> Option<u128> {
    match value {
        Value::Number(number) => number
            .as_u64()
            .map(u128::from)
            .or_else(|| number.as_f64().filter(|f| *f >= 0.0).map(|f| f as u128)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn room(value: u128) -> Room {
    match u64::try_from(value) {
        Ok(number) if number < 1 << 63 => Room::Number(number),
        _ => Room::Overflow(value),
    }
}

/// One bootstrap field, one element per sequence.
fn spread<T>(
    process: &Process,
    value: &Value,
    shape: BatchShape,
    read: impl Fn(&Value, usize) -> Option<T>,
) -> Result<Vec<Option<T>>, RequestError> {
    let BatchShape { batch, prompts, n } = shape;
    let invalid = || RequestError::Validation("1 validation error: invalid bootstrap field".into());
    if value.is_null() {
        return Ok((0..prompts * n).map(|_| None).collect());
    }
    let one = |value: &Value, offset| match value {
        Value::Null => Ok(None),
        value => read(value, offset).map(Some).ok_or_else(invalid),
    };
    match value {
        // An index beyond the list is an unhandled exception.
        Value::Array(list) if batch && list.len() < prompts => {
            Err(RequestError::Crash("list index out of range".into()))
        }
        Value::Array(list) if batch => {
            (0..prompts * n).map(|position| one(&list[position / n], 0)).collect()
        }
        // 0.4 indexes the single value.
        _ if batch && process.is_0_4() => {
            Err(RequestError::Crash("'int' object is not subscriptable".into()))
        }
        // 0.5 numbers the rooms of a batch upwards from the given one.
        _ => (0..prompts * n).map(|position| one(value, position)).collect(),
    }
}

fn own_rid() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

fn rids(body: &Value, batch: bool, prompts: usize, n: usize) -> Result<Vec<String>, RequestError> {
    let count = prompts * n;
    // Parallel samples get generated ids, whatever the request says.
    if n > 1 {
        return Ok((0..count).map(|_| own_rid()).collect());
    }
    match &body["rid"] {
        Value::String(rid) if !batch => Ok(vec![rid.clone()]),
        Value::String(rid) => Ok((0..count).map(|position| format!("{rid}_{position}")).collect()),
        Value::Array(list) if batch => {
            let list: Vec<String> =
                list.iter().filter_map(|rid| rid.as_str().map(str::to_owned)).collect();
            if list.len() == count {
                return Ok(list);
            }
            Err(value_error(
                "The specified rids length mismatch with the batch_size for batch processing.",
            ))
        }
        _ => Ok((0..count).map(|_| own_rid()).collect()),
    }
}

/// The DP rank that the request names, if any.
fn routed_rank(
    process: &Process,
    api: Api,
    body: &Value,
    headers: &HeaderMap,
) -> Result<Option<u64>, RequestError> {
    if process.is_0_4() {
        return Ok(body["data_parallel_rank"].as_u64());
    }
    if let Some(value) = headers.get("x-data-parallel-rank").filter(|_| api != Api::Generate) {
        let text = String::from_utf8_lossy(value.as_bytes());
        return text.trim().parse().map(Some).map_err(|_| {
            RequestError::Value(format!(
                "Invalid X-Data-Parallel-Rank header: must be an integer, got '{text}'"
            ))
        });
    }
    Ok(body["routed_dp_rank"].as_u64().or_else(|| body["data_parallel_rank"].as_u64()))
}
