//! Where each sequence of a request runs and meets: request ids, bootstrap fields, DP rank.

use http::HeaderMap;
use rand::Rng;
use serde_json::Value;

use crate::leg::Room;
use crate::life::Life;

use super::ask::{Api, Refusal, value_error};

/// How many sequences, and whether the engine takes them as a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) batch: bool,
    pub(crate) prompts: usize,
    pub(crate) n: usize,
}

/// One of each for every sequence.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) rids: Vec<String>,
    pub(crate) rooms: Vec<Option<Room>>,
    pub(crate) hosts: Vec<Option<String>>,
    pub(crate) ports: Vec<Option<u16>>,
    pub(crate) routed_rank: Option<u64>,
}

impl Places {
    /// Reads the fields as the engine spreads them over a batch; `listed` says whether the
    /// prompts came as a list.
    ///
    /// # Errors
    /// Fields that the engine refuses, or at which it throws.
    pub(crate) fn read(
        life: &Life,
        api: Api,
        headers: &HeaderMap,
        body: &Value,
        listed: bool,
        shape: Shape,
    ) -> Result<Places, Refusal> {
        let host = |value: &Value, _: usize| value.as_str().map(str::to_owned);
        let port = |value: &Value, _: usize| u16::try_from(integer(value)?).ok();
        let number = |value: &Value, offset: usize| {
            Some(room(integer(value)?.saturating_add(offset as u128)))
        };
        Ok(Places {
            rids: rids(body, listed, shape.prompts, shape.n)?,
            rooms: spread(life, &body["bootstrap_room"], shape, number)?,
            hosts: spread(life, &body["bootstrap_host"], shape, host)?,
            ports: spread(life, &body["bootstrap_port"], shape, port)?,
            routed_rank: routed_rank(life, api, body, headers)?,
        })
    }
}

/// A number, or a string that is one, as the engine's models take it.
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

/// One bootstrap field for each of `count` sequences.
fn spread<T>(
    life: &Life,
    value: &Value,
    shape: Shape,
    read: impl Fn(&Value, usize) -> Option<T>,
) -> Result<Vec<Option<T>>, Refusal> {
    let Shape { batch, prompts, n } = shape;
    let invalid = || Refusal::Validation("1 validation error: invalid bootstrap field".into());
    if value.is_null() {
        return Ok((0..prompts * n).map(|_| None).collect());
    }
    let one = |value: &Value, offset| match value {
        Value::Null => Ok(None),
        value => read(value, offset).map(Some).ok_or_else(invalid),
    };
    match value {
        // Indexing beyond the list is an exception that nobody expected.
        Value::Array(list) if batch && list.len() < prompts => {
            Err(Refusal::Crash("list index out of range".into()))
        }
        Value::Array(list) if batch => {
            (0..prompts * n).map(|place| one(&list[place / n], 0)).collect()
        }
        // A batch on the old engine indexes what it was given.
        _ if batch && life.is_old() => {
            Err(Refusal::Crash("'int' object is not subscriptable".into()))
        }
        // The new engine counts rooms on from the first.
        _ => (0..prompts * n).map(|place| one(value, place)).collect(),
    }
}

fn own_rid() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

fn rids(body: &Value, batch: bool, prompts: usize, n: usize) -> Result<Vec<String>, Refusal> {
    let count = prompts * n;
    // Parallel samples get ids of their own, whatever was asked.
    if n > 1 {
        return Ok((0..count).map(|_| own_rid()).collect());
    }
    match &body["rid"] {
        Value::String(rid) if !batch => Ok(vec![rid.clone()]),
        Value::String(rid) => Ok((0..count).map(|place| format!("{rid}_{place}")).collect()),
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

/// The DP rank that the request is sent to, where it says.
fn routed_rank(
    life: &Life,
    api: Api,
    body: &Value,
    headers: &HeaderMap,
) -> Result<Option<u64>, Refusal> {
    if life.is_old() {
        return Ok(body["data_parallel_rank"].as_u64());
    }
    if let Some(value) = headers.get("x-data-parallel-rank").filter(|_| api != Api::Generate) {
        let text = String::from_utf8_lossy(value.as_bytes());
        return text.trim().parse().map(Some).map_err(|_| {
            Refusal::Value(format!(
                "Invalid X-Data-Parallel-Rank header: must be an integer, got '{text}'"
            ))
        });
    }
    Ok(body["routed_dp_rank"].as_u64().or_else(|| body["data_parallel_rank"].as_u64()))
}
