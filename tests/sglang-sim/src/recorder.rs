//! What tests can inspect: requests, aborts, rooms and KV traffic. Survives restarts; its size is
//! limited.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::Notify;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Number in order of arrival since the start or the last reset, from 0.
    pub sequence: u64,
    /// Milliseconds since the engine was first started.
    pub at_ms: u64,
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Request ids of the legs: the client's, or generated ones.
    pub rids: Vec<String>,
    pub rooms: Vec<u64>,
    /// `pending`, `ok`, `error 500`, `aborted`, `client gone`, or the name of the script's action.
    pub outcome: String,
}

impl Received {
    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The body as JSON, null where it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// One abort received over HTTP.
#[derive(Clone, Debug)]
pub struct Abort {
    pub at_ms: u64,
    pub rid: String,
    pub abort_all: bool,
    /// Request ids of the legs that it aborted.
    pub matched: Vec<String>,
}

/// KV traffic between this engine and one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvTraffic {
    /// KV bytes, without framing.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent_transfers: u64,
    pub received_transfers: u64,
    /// Data connections opened to the peer or accepted from it.
    pub connections: u64,
    /// Transfers whose bytes did not belong to one prompt.
    pub corrupt_transfers: u64,
}

#[derive(Debug, Default)]
struct Records {
    received: VecDeque<Received>,
    next: u64,
    aborts: VecDeque<Abort>,
    rooms: VecDeque<u64>,
    kv: BTreeMap<IpAddr, KvTraffic>,
}

/// Records what an engine receives.
#[derive(Debug)]
pub(crate) struct Recorder {
    records: Mutex<Records>,
    limit: usize,
    start: Instant,
    changed: Notify,
}

/// Sets the outcome of one recorded request.
#[derive(Clone, Debug)]
pub(crate) struct RequestRecord {
    recorder: Arc<Recorder>,
    sequence: Option<u64>,
}

impl Recorder {
    pub(crate) fn new(limit: usize) -> Arc<Recorder> {
        Arc::new(Recorder {
            records: Mutex::default(),
            limit,
            start: Instant::now(),
            changed: Notify::new(),
        })
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock()
    }

    fn at_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A future that completes at the next change. Create it before checking a condition.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn receive(
        self: &Arc<Self>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> RequestRecord {
        if self.limit == 0 {
            return RequestRecord { recorder: Arc::clone(self), sequence: None };
        }
        let at_ms = self.at_ms();
        let mut records = self.records();
        let sequence = records.next;
        records.next += 1;
        if records.received.len() == self.limit {
            records.received.pop_front();
        }
        records.received.push_back(Received {
            sequence,
            at_ms,
            method: method.clone(),
            uri: uri.clone(),
            headers: headers.clone(),
            body: body.clone(),
            rids: Vec::new(),
            rooms: Vec::new(),
            outcome: "pending".into(),
        });
        drop(records);
        self.notify();
        RequestRecord { recorder: Arc::clone(self), sequence: Some(sequence) }
    }

    pub(crate) fn abort(&self, rid: String, abort_all: bool, matched: Vec<String>) {
        let at_ms = self.at_ms();
        let mut records = self.records();
        if records.aborts.len() == self.limit.max(1) {
            records.aborts.pop_front();
        }
        records.aborts.push_back(Abort { at_ms, rid, abort_all, matched });
        drop(records);
        self.notify();
    }

    pub(crate) fn room(&self, room: u64) {
        let mut records = self.records();
        if records.rooms.len() == self.limit.max(1) {
            records.rooms.pop_front();
        }
        records.rooms.push_back(room);
    }

    pub(crate) fn kv(&self, peer: IpAddr, change: impl FnOnce(&mut KvTraffic)) {
        change(self.records().kv.entry(peer.to_canonical()).or_default());
        self.notify();
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.records().received.iter().cloned().collect()
    }

    pub(crate) fn aborts(&self) -> Vec<Abort> {
        self.records().aborts.iter().cloned().collect()
    }

    pub(crate) fn rooms(&self) -> Vec<u64> {
        self.records().rooms.iter().copied().collect()
    }

    pub(crate) fn kv_traffic(&self) -> BTreeMap<IpAddr, KvTraffic> {
        self.records().kv.clone()
    }

    pub(crate) fn reset(&self) {
        *self.records() = Records::default();
        self.notify();
    }
}

impl RequestRecord {
    /// A handle that records nothing.
    pub(crate) fn unrecorded(recorder: &Arc<Recorder>) -> RequestRecord {
        RequestRecord { recorder: Arc::clone(recorder), sequence: None }
    }

    fn amend(&self, change: impl FnOnce(&mut Received)) {
        let Some(sequence) = self.sequence else { return };
        let mut records = self.recorder.records();
        let first = records.received.front().map_or(0, |r| r.sequence);
        let position = sequence.checked_sub(first).and_then(|p| usize::try_from(p).ok());
        // None if the limit or a reset has dropped it.
        let record = position.and_then(|p| records.received.get_mut(p));
        if let Some(record) = record.filter(|e| e.sequence == sequence) {
            change(record);
        }
        drop(records);
        self.recorder.notify();
    }

    /// Records how the request ended. Only the first outcome counts.
    pub(crate) fn outcome(&self, outcome: impl Into<String>) {
        self.amend(|record| {
            if record.outcome == "pending" {
                record.outcome = outcome.into();
            }
        });
    }

    pub(crate) fn legs(&self, rids: Vec<String>, rooms: Vec<u64>) {
        self.amend(|record| (record.rids, record.rooms) = (rids, rooms));
    }
}
