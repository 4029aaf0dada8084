//! [`Worker`]: one engine's HTTP endpoint, its live counts, and the [`Lease`] that counts.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::uri::Authority;
use parking_lot::{Mutex, MutexGuard};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::engine_load::EngineLoadCell;
use super::health::Health;
use super::lease_history::LeaseHistory;
use super::load::LoadCell;
use super::prefill_queue::PrefillQueue;
use super::ranks::MAX_RANKS;
use super::rates::RateEstimators;
use crate::fnv::fnv1a_nonzero;

/// What makes a worker the same worker: the pod's UID and the port. The same address with a
/// new UID is another worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct WorkerKey {
    pub uid: Arc<str>,
    pub port: u16,
}

/// One engine's HTTP endpoint. Lives as long as anybody holds it, across reconfigurations.
#[derive(Debug)]
pub struct Worker {
    pub key: WorkerKey,
    /// `namespace/pod`.
    pub name: Arc<str>,
    pub address: SocketAddr,
    /// `address` as it stands in a URL, made once.
    pub authority: Authority,
    /// `key`, hashed: the same in every snapshot and every gateway.
    pub identity: u64,
    pub health: Health,
    /// What an agent measured of it.
    pub load: LoadCell,
    /// What this gateway had on it lately.
    pub lease_history: LeaseHistory,
    /// What was learned of it.
    pub rate_estimators: RateEstimators,
    /// What its engine tells.
    pub engine: EngineLoadCell,
    prefill_queue: Mutex<PrefillQueue>,
    counts: Counts,
    /// The part of the leases that was steered to each data-parallel rank.
    ranks: OnceLock<Box<[Counts; MAX_RANKS as usize]>>,
}

/// A sum of weights that many change at once.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    prompt_bytes: AtomicU64,
    kv_tokens: AtomicU64,
    exchanges: AtomicU64,
    wire_bytes: AtomicU64,
}

impl Counts {
    const fn new() -> Counts {
        Counts {
            requests: AtomicU64::new(0),
            prompt_bytes: AtomicU64::new(0),
            kv_tokens: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            prompt_bytes: self.prompt_bytes.load(Ordering::Relaxed),
            kv_tokens: self.kv_tokens.load(Ordering::Relaxed),
            exchanges: self.exchanges.load(Ordering::Relaxed),
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
        }
    }

    /// Says what it was before.
    fn add(&self, weight: Weight) -> Usage {
        Usage {
            requests: self.requests.fetch_add(weight.requests, Ordering::Relaxed),
            prompt_bytes: self.prompt_bytes.fetch_add(weight.prompt_bytes, Ordering::Relaxed),
            kv_tokens: self.kv_tokens.fetch_add(weight.kv_tokens, Ordering::Relaxed),
            exchanges: self.exchanges.fetch_add(weight.exchanges, Ordering::Relaxed),
            wire_bytes: self.wire_bytes.fetch_add(weight.wire_bytes, Ordering::Relaxed),
        }
    }

    fn take(&self, weight: Weight) {
        self.requests.fetch_sub(weight.requests, Ordering::Relaxed);
        self.prompt_bytes.fetch_sub(weight.prompt_bytes, Ordering::Relaxed);
        self.kv_tokens.fetch_sub(weight.kv_tokens, Ordering::Relaxed);
        self.exchanges.fetch_sub(weight.exchanges, Ordering::Relaxed);
        self.wire_bytes.fetch_sub(weight.wire_bytes, Ordering::Relaxed);
    }
}

/// What one request weighs on a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Weight {
    pub requests: u64,
    pub prompt_bytes: u64,
    pub kv_tokens: u64,
    /// HTTP requests, and the bytes of their bodies: what the kernel counts at the pod.
    #[serde(skip)]
    pub exchanges: u64,
    #[serde(skip)]
    pub wire_bytes: u64,
}

/// The sum of the leases on a worker.
pub type Usage = Weight;

/// What a worker takes at once. `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    pub requests: u64,
    pub kv_tokens: u64,
}

impl Limits {
    pub const NONE: Limits = Limits { requests: u64::MAX, kv_tokens: u64::MAX };

    /// Whether `weight` fits beside `usage`. An idle worker takes any single request: a prompt
    /// that is larger than the whole cache is the engine's to refuse.
    pub fn admit(&self, usage: Usage, weight: Weight) -> bool {
        usage.requests == 0
            || (usage.requests.saturating_add(weight.requests) <= self.requests
                && usage.kv_tokens.saturating_add(weight.kv_tokens) <= self.kv_tokens)
    }
}

/// Called with the worker whenever a lease on it ends, so that a waiting request can look again.
pub type Released = Arc<dyn Fn(&Worker) + Send + Sync>;

impl Worker {
    pub fn new(key: WorkerKey, name: impl Into<Arc<str>>, address: SocketAddr) -> Worker {
        Worker {
            name: name.into(),
            address,
            authority: authority(address),
            identity: identity(&key),
            health: Health::default(),
            load: LoadCell::default(),
            lease_history: LeaseHistory::default(),
            rate_estimators: RateEstimators::default(),
            engine: EngineLoadCell::default(),
            key,
            prefill_queue: Mutex::default(),
            counts: Counts::default(),
            ranks: OnceLock::new(),
        }
    }

    /// What the leases on this worker add up to now.
    pub fn usage(&self) -> Usage {
        self.counts.now()
    }

    /// The prompts that this gateway sent a prefill and that are not computed yet, in order.
    pub fn prefill_queue(&self) -> MutexGuard<'_, PrefillQueue> {
        // Nothing that can panic runs under the lock.
        self.prefill_queue.lock()
    }

    /// What the leases that were steered to a rank add up to now.
    pub fn usage_of_rank(&self, rank: u32) -> Usage {
        self.rank(rank).map(Counts::now).unwrap_or_default()
    }

    fn rank(&self, rank: u32) -> Option<&Counts> {
        self.ranks.get()?.get(rank as usize)
    }

    /// Counts a request until the lease is dropped, or `None` where it does not fit.
    ///
    /// Two racing requests can both be counted for a moment and one of them leaves again: the
    /// limit is never exceeded by what stays.
    pub fn try_lease(
        self: &Arc<Worker>,
        weight: Weight,
        limits: Limits,
        released: Option<Released>,
    ) -> Option<Lease> {
        let before = self.counts.add(weight);
        if limits.admit(before, weight) {
            return Some(Lease { worker: Arc::clone(self), weight, rank: None, released });
        }
        self.counts.take(weight);
        None
    }
}

fn authority(address: SocketAddr) -> Authority {
    // Digits, dots, colons and brackets only: always an authority, also for IPv6.
    address.to_string().parse().expect("a socket address is an authority")
}

/// Hash of the pod's UID and the port, never 0.
fn identity(key: &WorkerKey) -> u64 {
    fnv1a_nonzero(key.uid.bytes().chain(key.port.to_be_bytes()))
}

/// Whose prefix cache a data-parallel rank of a worker has: its own; rank 0 has the worker's.
pub fn cache_of(identity: u64, rank: u32) -> u64 {
    identity ^ u64::from(rank).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Counts one request on one worker until dropped.
#[must_use = "a dropped lease counts nothing"]
pub struct Lease {
    worker: Arc<Worker>,
    weight: Weight,
    rank: Option<u32>,
    released: Option<Released>,
}

impl Lease {
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Counts it on a data-parallel rank as well.
    pub fn at_rank(mut self, rank: Option<u32>) -> Lease {
        let counts = || {
            self.worker
                .ranks
                .get_or_init(|| Box::new([const { Counts::new() }; MAX_RANKS as usize]))
        };
        if let (Some(rank), None) = (rank.filter(|rank| *rank < MAX_RANKS), self.rank) {
            counts()[rank as usize].add(self.weight);
            self.rank = Some(rank);
        }
        self
    }

    /// The rank that the request is steered to; `None` leaves it to the engine.
    pub fn rank(&self) -> Option<u32> {
        self.rank
    }

    /// Takes the count back without telling anybody: the place was never used, and whoever gives
    /// it back may hold what the told one needs.
    pub fn withdraw(mut self) {
        self.released = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.worker.counts.take(self.weight);
        if let Some(rank) = self.rank.and_then(|rank| self.worker.rank(rank)) {
            rank.take(self.weight);
        }
        if let Some(released) = &self.released {
            released(&self.worker);
        }
    }
}

impl Serialize for Worker {
    /// The worker as `/fleet` shows it, with its counts and health of this moment.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Worker", 5)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("uid", &self.key.uid)?;
        fields.serialize_field("address", &self.address)?;
        fields.serialize_field("health", &self.health.verdict())?;
        fields.serialize_field("usage", &self.usage())?;
        fields.end()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("worker", &self.worker.name)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn worker() -> Arc<Worker> {
        let key = WorkerKey { uid: "uid".into(), port: 8000 };
        Arc::new(Worker::new(key, "default/pod", ([127, 0, 0, 1], 8000).into()))
    }

    const ONE: Weight =
        Weight { requests: 1, prompt_bytes: 100, kv_tokens: 40, exchanges: 1, wire_bytes: 120 };

    #[test]
    fn a_lease_counts_until_dropped_and_then_tells() {
        let worker = worker();
        let told = Arc::new(AtomicUsize::new(0));
        let hear = Arc::clone(&told);
        let released: Released = Arc::new(move |_| {
            hear.fetch_add(1, Ordering::Relaxed);
        });
        let lease = worker.try_lease(ONE, Limits::NONE, Some(released)).unwrap();
        assert_eq!(worker.usage(), ONE);
        drop(lease);
        assert_eq!(worker.usage(), Usage::default());
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_withdrawn_lease_leaves_in_silence() {
        let worker = worker();
        let released: Released = Arc::new(|_| panic!("told"));
        worker.try_lease(ONE, Limits::NONE, Some(released)).unwrap().withdraw();
        assert_eq!(worker.usage(), Usage::default());
    }

    #[test]
    fn a_lease_counts_on_its_rank_too() {
        let worker = worker();
        let lease = worker.try_lease(ONE, Limits::NONE, None).unwrap().at_rank(Some(3));
        assert_eq!((worker.usage(), worker.usage_of_rank(3)), (ONE, ONE));
        assert_eq!((worker.usage_of_rank(2), worker.usage_of_rank(9_999)), Default::default());
        drop(lease);
        assert_eq!((worker.usage(), worker.usage_of_rank(3)), Default::default());
        let beyond = worker.try_lease(ONE, Limits::NONE, None).unwrap().at_rank(Some(MAX_RANKS));
        assert_eq!(beyond.rank(), None);
    }

    #[test]
    fn what_does_not_fit_leaves_no_trace() {
        let worker = worker();
        let limits = Limits { requests: 8, kv_tokens: 60 };
        let first = worker.try_lease(ONE, limits, None).unwrap();
        assert!(worker.try_lease(ONE, limits, None).is_none());
        assert_eq!(worker.usage(), ONE);
        drop(first);
        assert!(worker.try_lease(ONE, limits, None).is_some());
    }

    #[test]
    fn an_idle_worker_takes_a_request_that_is_larger_than_its_cache() {
        let huge = Weight { kv_tokens: 1_000_000, ..ONE };
        assert!(worker().try_lease(huge, Limits { requests: 1, kv_tokens: 10 }, None).is_some());
    }
}
