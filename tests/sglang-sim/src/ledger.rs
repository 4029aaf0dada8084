//! What an engine remembers for the tests that ask: requests, aborts, rooms and KV bytes. It
//! outlives a restart and is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde_json::Value;
use tokio::sync::Notify;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Place in the order of arrival since the start or the last reset, from 0.
    pub sequence: u64,
    /// Milliseconds since the engine was first started.
    pub at_ms: u64,
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Request ids of the legs; the engine's own where the request brought none.
    pub rids: Vec<String>,
    pub rooms: Vec<u64>,
    /// `pending`, `ok`, `error 500`, `aborted`, `client gone`, or the script action taken.
    pub outcome: String,
}

impl Received {
    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// One abort that arrived over HTTP.
#[derive(Clone, Debug)]
pub struct Abort {
    pub at_ms: u64,
    pub rid: String,
    pub abort_all: bool,
    /// Request ids of the legs that it ended.
    pub matched: Vec<String>,
}

/// KV moved between this engine and one other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvTraffic {
    /// KV bytes, without framing.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent_transfers: u64,
    pub received_transfers: u64,
    /// Data connections opened to the peer or accepted from it.
    pub connections: u64,
    /// Transfers whose bytes were not those of one prompt.
    pub corrupt_transfers: u64,
}

#[derive(Debug, Default)]
struct Pages {
    received: VecDeque<Received>,
    next: u64,
    aborts: VecDeque<Abort>,
    rooms: VecDeque<u64>,
    kv: BTreeMap<IpAddr, KvTraffic>,
}

/// The memory itself.
#[derive(Debug)]
pub(crate) struct Ledger {
    pages: Mutex<Pages>,
    limit: usize,
    start: Instant,
    changed: Notify,
}

/// Where the outcome of one request goes.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    ledger: Arc<Ledger>,
    sequence: Option<u64>,
}

impl Ledger {
    pub(crate) fn new(limit: usize) -> Arc<Ledger> {
        Arc::new(Ledger {
            pages: Mutex::default(),
            limit,
            start: Instant::now(),
            changed: Notify::new(),
        })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("no code panics while it holds the ledger")
    }

    fn at_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A future that completes at the next change; take it before looking.
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
    ) -> Entry {
        if self.limit == 0 {
            return Entry { ledger: Arc::clone(self), sequence: None };
        }
        let at_ms = self.at_ms();
        let mut pages = self.pages();
        let sequence = pages.next;
        pages.next += 1;
        if pages.received.len() == self.limit {
            pages.received.pop_front();
        }
        pages.received.push_back(Received {
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
        drop(pages);
        self.notify();
        Entry { ledger: Arc::clone(self), sequence: Some(sequence) }
    }

    pub(crate) fn abort(&self, rid: String, abort_all: bool, matched: Vec<String>) {
        let at_ms = self.at_ms();
        let mut pages = self.pages();
        if pages.aborts.len() == self.limit.max(1) {
            pages.aborts.pop_front();
        }
        pages.aborts.push_back(Abort { at_ms, rid, abort_all, matched });
        drop(pages);
        self.notify();
    }

    pub(crate) fn room(&self, room: u64) {
        let mut pages = self.pages();
        if pages.rooms.len() == self.limit.max(1) {
            pages.rooms.pop_front();
        }
        pages.rooms.push_back(room);
    }

    pub(crate) fn kv(&self, peer: IpAddr, change: impl FnOnce(&mut KvTraffic)) {
        change(self.pages().kv.entry(peer.to_canonical()).or_default());
        self.notify();
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.pages().received.iter().cloned().collect()
    }

    pub(crate) fn aborts(&self) -> Vec<Abort> {
        self.pages().aborts.iter().cloned().collect()
    }

    pub(crate) fn rooms(&self) -> Vec<u64> {
        self.pages().rooms.iter().copied().collect()
    }

    pub(crate) fn kv_traffic(&self) -> BTreeMap<IpAddr, KvTraffic> {
        self.pages().kv.clone()
    }

    pub(crate) fn reset(&self) {
        *self.pages() = Pages::default();
        self.notify();
    }
}

impl Entry {
    /// For requests that are not written down.
    pub(crate) fn nowhere(ledger: &Arc<Ledger>) -> Entry {
        Entry { ledger: Arc::clone(ledger), sequence: None }
    }

    fn amend(&self, change: impl FnOnce(&mut Received)) {
        let Some(sequence) = self.sequence else { return };
        let mut pages = self.ledger.pages();
        let first = pages.received.front().map_or(0, |r| r.sequence);
        let place = sequence.checked_sub(first).and_then(|p| usize::try_from(p).ok());
        // Gone if the limit or a reset has forgotten it.
        let entry = place.and_then(|p| pages.received.get_mut(p));
        if let Some(entry) = entry.filter(|e| e.sequence == sequence) {
            change(entry);
        }
        drop(pages);
        self.ledger.notify();
    }

    /// Writes down how the request ended; the first word stays.
    pub(crate) fn outcome(&self, outcome: impl Into<String>) {
        self.amend(|entry| {
            if entry.outcome == "pending" {
                entry.outcome = outcome.into();
            }
        });
    }

    pub(crate) fn legs(&self, rids: Vec<String>, rooms: Vec<u64>) {
        self.amend(|entry| (entry.rids, entry.rooms) = (rids, rooms));
    }
}
