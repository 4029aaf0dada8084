//! [`Worker`]: one engine's HTTP endpoint with its live state, and the [`Lease`] that counts a request.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::uri::Authority;
use parking_lot::{Mutex, MutexGuard};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::engine_load::EngineLoadCell;
use super::ghosts::GhostLeases;
use super::health::Health;
use super::lease_history::LeaseHistory;
use super::load::LoadCell;
use super::outcomes::{Outcomes, RequestKind};
use super::prefill_queue::PrefillQueue;
use super::ranks::MAX_RANKS;
use super::rates::RateEstimators;
use crate::fnv::fnv1a_nonzero;

/// The identity of a worker: the pod's UID, its address and the port. The same address with a new UID
/// is another worker, and so is the same UID with a new address: its engine is another process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct WorkerKey {
    pub uid: Arc<str>,
    pub address: SocketAddr,
}

/// One engine's HTTP endpoint. It lives as long as a snapshot or a lease refers to it.
#[derive(Debug)]
pub struct Worker {
    pub key: WorkerKey,
    /// `namespace/pod`.
    pub name: Arc<str>,
    /// The key's address as the authority of a URL.
    pub authority: Authority,
    /// Hash of `key`: the same in every snapshot and every gateway.
    pub identity: u64,
    pub health: Health,
    /// The last measurements of an agent.
    pub load: LoadCell,
    /// This gateway's recent leases on the worker.
    pub lease_history: LeaseHistory,
    /// Estimators of the worker's speed.
    pub rate_estimators: RateEstimators,
    /// The engine's last report about its load.
    pub engine: EngineLoadCell,
    /// How its recent requests that generate ended.
    pub outcomes: Outcomes,
    /// How the requests that were forwarded to it ended.
    forwarded: Outcomes,
    /// Failed requests that still count in choices.
    pub ghosts: GhostLeases,
    /// Pipeline stages that the engine reported; 0 is not known.
    pipeline_stages: AtomicU32,
    answers: AtomicU64,
    unclear_timeouts: AtomicU32,
    prefill_queue: Mutex<PrefillQueue>,
    counts: UsageCounters,
    /// Usage of each data-parallel rank, by leases that name one.
    ranks: OnceLock<Box<[UsageCounters; MAX_RANKS as usize]>>,
}

/// A sum of weights that many threads change concurrently.
#[derive(Debug, Default)]
struct UsageCounters {
    requests: AtomicU64,
    prompt_bytes: AtomicU64,
    kv_tokens: AtomicU64,
    exchanges: AtomicU64,
    wire_bytes: AtomicU64,
}

impl UsageCounters {
    const fn new() -> UsageCounters {
        UsageCounters {
            requests: AtomicU64::new(0),
            prompt_bytes: AtomicU64::new(0),
            kv_tokens: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
        }
    }

    fn load(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            prompt_bytes: self.prompt_bytes.load(Ordering::Relaxed),
            kv_tokens: self.kv_tokens.load(Ordering::Relaxed),
            exchanges: self.exchanges.load(Ordering::Relaxed),
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
        }
    }

    /// Returns the sum before the addition.
    fn add(&self, weight: Weight) -> Usage {
        Usage {
            requests: self.requests.fetch_add(weight.requests, Ordering::Relaxed),
            prompt_bytes: self.prompt_bytes.fetch_add(weight.prompt_bytes, Ordering::Relaxed),
            kv_tokens: self.kv_tokens.fetch_add(weight.kv_tokens, Ordering::Relaxed),
            exchanges: self.exchanges.fetch_add(weight.exchanges, Ordering::Relaxed),
            wire_bytes: self.wire_bytes.fetch_add(weight.wire_bytes, Ordering::Relaxed),
        }
    }

    fn subtract(&self, weight: Weight) {
        self.requests.fetch_sub(weight.requests, Ordering::Relaxed);
        self.prompt_bytes.fetch_sub(weight.prompt_bytes, Ordering::Relaxed);
        self.kv_tokens.fetch_sub(weight.kv_tokens, Ordering::Relaxed);
        self.exchanges.fetch_sub(weight.exchanges, Ordering::Relaxed);
        self.wire_bytes.fetch_sub(weight.wire_bytes, Ordering::Relaxed);
    }
}

/// The share of a worker's capacity that one request uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Weight {
    pub requests: u64,
    pub prompt_bytes: u64,
    pub kv_tokens: u64,
    /// HTTP requests as the kernel counts them at the pod.
    #[serde(skip)]
    pub exchanges: u64,
    /// Bytes of the HTTP requests' bodies.
    #[serde(skip)]
    pub wire_bytes: u64,
}

impl Weight {
    /// Returns the sum.
    pub fn plus(self, other: Weight) -> Weight {
        Weight {
            requests: self.requests.saturating_add(other.requests),
            prompt_bytes: self.prompt_bytes.saturating_add(other.prompt_bytes),
            kv_tokens: self.kv_tokens.saturating_add(other.kv_tokens),
            exchanges: self.exchanges.saturating_add(other.exchanges),
            wire_bytes: self.wire_bytes.saturating_add(other.wire_bytes),
        }
    }

    /// Returns an even share of the weight for one of `count` ranks, rounded up.
    pub fn share(self, count: u32) -> Weight {
        let each = |all: u64| all.div_ceil(u64::from(count.max(1)));
        Weight {
            requests: each(self.requests),
            prompt_bytes: each(self.prompt_bytes),
            kv_tokens: each(self.kv_tokens),
            exchanges: each(self.exchanges),
            wire_bytes: each(self.wire_bytes),
        }
    }
}

/// The sum of the leases on a worker.
pub type Usage = Weight;

/// The capacity of a worker. `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WorkerLimits {
    pub requests: u64,
    pub kv_tokens: u64,
}

impl WorkerLimits {
    pub const NONE: WorkerLimits = WorkerLimits { requests: u64::MAX, kv_tokens: u64::MAX };

    /// Whether there is capacity for `weight` beside `usage`. An idle worker admits any single request:
    /// the engine itself rejects a prompt that is larger than its cache.
    pub fn admit(&self, usage: Usage, weight: Weight) -> bool {
        usage.requests == 0
            || (usage.requests.saturating_add(weight.requests) <= self.requests
                && usage.kv_tokens.saturating_add(weight.kv_tokens) <= self.kv_tokens)
    }
}

/// Called with the worker when a lease on it ends, to wake a queued request.
pub type OnRelease = Arc<dyn Fn(&Worker) + Send + Sync>;

impl Worker {
    pub fn new(key: WorkerKey, name: impl Into<Arc<str>>) -> Worker {
        Worker {
            name: name.into(),
            authority: authority(key.address),
            identity: identity(&key),
            health: Health::default(),
            load: LoadCell::default(),
            lease_history: LeaseHistory::default(),
            rate_estimators: RateEstimators::default(),
            engine: EngineLoadCell::default(),
            outcomes: Outcomes::default(),
            forwarded: Outcomes::default(),
            ghosts: GhostLeases::default(),
            key,
            pipeline_stages: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            unclear_timeouts: AtomicU32::new(0),
            prefill_queue: Mutex::default(),
            counts: UsageCounters::default(),
            ranks: OnceLock::new(),
        }
    }

    /// How its recent requests of a kind ended.
    pub fn outcomes_of(&self, kind: RequestKind) -> &Outcomes {
        match kind {
            RequestKind::Generation => &self.outcomes,
            RequestKind::Forwarded => &self.forwarded,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.key.address
    }

    /// Stores the number of pipeline stages that the engine reports.
    pub fn set_pipeline_stages(&self, stages: Option<u32>) {
        self.pipeline_stages.store(stages.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether the engine has several pipeline stages.
    pub fn is_pipelined(&self) -> bool {
        self.pipeline_stages.load(Ordering::Relaxed) > 1
    }

    /// Counts a leg that the worker's engine has answered with generated output.
    pub fn count_answer(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.unclear_timeouts.store(0, Ordering::Release);
    }

    /// Number of legs that the worker's engine has answered. If it grows while a request waits, the
    /// engine's scheduler runs.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Counts a timeout that either this prefill or `decode` caused. Returns whether decode is to blame:
    /// it has more such timeouts since its last answer. With equally many it is prefill, for which decode
    /// has to wait.
    ///
    /// A decode that hangs is blamed from its second prefill on. With one prefill only, which has
    /// answered nothing since, that one is.
    pub fn blames_decode(&self, decode: &Worker) -> bool {
        // Prefill's is counted first and read last: concurrent timeouts of one pair leave its count at
        // least as high as decode's.
        self.unclear_timeouts.fetch_add(1, Ordering::AcqRel);
        decode.unclear_timeouts.fetch_add(1, Ordering::AcqRel);
        let of_decode = decode.unclear_timeouts.load(Ordering::Acquire);
        of_decode > self.unclear_timeouts.load(Ordering::Acquire)
    }

    /// Returns the sum of the leases on this worker.
    pub fn usage(&self) -> Usage {
        self.counts.load()
    }

    /// Locks the queue of prompts that this gateway sent to this prefill and that are not computed yet.
    pub fn prefill_queue(&self) -> MutexGuard<'_, PrefillQueue> {
        self.prefill_queue.lock()
    }

    /// Returns the sum of the leases that name this rank.
    pub fn usage_of_rank(&self, rank: u32) -> Usage {
        self.rank(rank).map(UsageCounters::load).unwrap_or_default()
    }

    fn rank(&self, rank: u32) -> Option<&UsageCounters> {
        self.ranks.get()?.get(rank as usize)
    }

    /// Counts a request until the lease is dropped. Returns `None` without capacity.
    ///
    /// Two concurrent requests can both be counted for a moment before one of them is rejected. The
    /// leases that are returned never exceed the limits.
    pub fn try_lease(
        self: &Arc<Worker>,
        weight: Weight,
        limits: WorkerLimits,
        on_release: Option<OnRelease>,
    ) -> Option<Lease> {
        let before = self.counts.add(weight);
        if limits.admit(before, weight) {
            return Some(Lease { worker: Arc::clone(self), weight, rank: None, on_release });
        }
        self.counts.subtract(weight);
        None
    }
}

fn authority(address: SocketAddr) -> Authority {
    // Digits, dots, colons and brackets only: always an authority, also for IPv6.
    address.to_string().parse().expect("a socket address is an authority")
}

/// Hash of the pod's UID, the address and the port, never 0.
fn identity(key: &WorkerKey) -> u64 {
    let port = key.address.port().to_be_bytes();
    match key.address.ip().to_canonical() {
        IpAddr::V4(ip) => fnv1a_nonzero(key.uid.bytes().chain(ip.octets()).chain(port)),
        IpAddr::V6(ip) => fnv1a_nonzero(key.uid.bytes().chain(ip.octets()).chain(port)),
    }
}

/// Returns the identity of the prefix cache of a worker's data-parallel rank. That of rank 0 is the
/// worker's identity.
pub fn cache_of(identity: u64, rank: u32) -> u64 {
    identity ^ u64::from(rank).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Counts one request on one worker until it is dropped.
#[must_use = "a dropped lease counts nothing"]
pub struct Lease {
    worker: Arc<Worker>,
    weight: Weight,
    rank: Option<u32>,
    on_release: Option<OnRelease>,
}

impl Lease {
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Counts the request on a data-parallel rank as well.
    pub fn at_rank(mut self, rank: Option<u32>) -> Lease {
        let counts = || {
            self.worker
                .ranks
                .get_or_init(|| Box::new([const { UsageCounters::new() }; MAX_RANKS as usize]))
        };
        if let (Some(rank), None) = (rank.filter(|rank| *rank < MAX_RANKS), self.rank) {
            counts()[rank as usize].add(self.weight);
            self.rank = Some(rank);
        }
        self
    }

    /// Returns the rank that the request is assigned to; `None` if the engine chooses.
    pub fn rank(&self) -> Option<u32> {
        self.rank
    }

    /// Ends the lease without calling [`OnRelease`]: the request was never sent, and the caller can hold
    /// a lock that the callback takes.
    pub fn cancel(mut self) {
        self.on_release = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.worker.counts.subtract(self.weight);
        if let Some(rank) = self.rank.and_then(|rank| self.worker.rank(rank)) {
            rank.subtract(self.weight);
        }
        if let Some(on_release) = &self.on_release {
            on_release(&self.worker);
        }
    }
}

impl Serialize for Worker {
    /// Writes the worker as the admin API's `/fleet` shows it, with its current usage and health.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Worker", 5)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("uid", &self.key.uid)?;
        fields.serialize_field("address", &self.key.address)?;
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
        Arc::new(Worker::new(key([127, 0, 0, 1]), "default/pod"))
    }

    fn key(ip: [u8; 4]) -> WorkerKey {
        WorkerKey { uid: "uid".into(), address: (ip, 8000).into() }
    }

    #[test]
    fn a_pod_with_another_address_has_another_cache() {
        let moved = Worker::new(key([127, 0, 0, 2]), "default/pod");
        assert_ne!(moved.identity, worker().identity);
        assert_eq!(Worker::new(key([127, 0, 0, 1]), "x").identity, worker().identity);
    }

    #[test]
    fn a_worker_that_hangs_is_blamed_from_its_second_partner_on() {
        let [hung, first, second] = [worker(), worker(), worker()];
        assert!(!first.blames_decode(&hung), "one timeout does not tell");
        assert!(second.blames_decode(&hung));
        hung.count_answer();
        assert!(!second.blames_decode(&hung), "it has answered since");
        let [hung, first, second] = [worker(), worker(), worker()];
        assert!(!hung.blames_decode(&first));
        assert!(!hung.blames_decode(&second));
        assert!(
            !hung.blames_decode(&second),
            "both have as many as requests of the pair timed out"
        );
    }

    const ONE: Weight =
        Weight { requests: 1, prompt_bytes: 100, kv_tokens: 40, exchanges: 1, wire_bytes: 120 };

    #[test]
    fn a_lease_counts_until_dropped_and_then_calls_back() {
        let worker = worker();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        let on_release: OnRelease = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let lease = worker.try_lease(ONE, WorkerLimits::NONE, Some(on_release)).unwrap();
        assert_eq!(worker.usage(), ONE);
        drop(lease);
        assert_eq!(worker.usage(), Usage::default());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_cancelled_lease_does_not_call_back() {
        let worker = worker();
        let on_release: OnRelease = Arc::new(|_| panic!("called back"));
        worker.try_lease(ONE, WorkerLimits::NONE, Some(on_release)).unwrap().cancel();
        assert_eq!(worker.usage(), Usage::default());
    }

    #[test]
    fn a_lease_counts_on_its_rank_too() {
        let worker = worker();
        let lease = worker.try_lease(ONE, WorkerLimits::NONE, None).unwrap().at_rank(Some(3));
        assert_eq!((worker.usage(), worker.usage_of_rank(3)), (ONE, ONE));
        assert_eq!((worker.usage_of_rank(2), worker.usage_of_rank(9_999)), Default::default());
        drop(lease);
        assert_eq!((worker.usage(), worker.usage_of_rank(3)), Default::default());
        let beyond =
            worker.try_lease(ONE, WorkerLimits::NONE, None).unwrap().at_rank(Some(MAX_RANKS));
        assert_eq!(beyond.rank(), None);
    }

    #[test]
    fn a_rejected_request_is_not_counted() {
        let worker = worker();
        let limits = WorkerLimits { requests: 8, kv_tokens: 60 };
        let first = worker.try_lease(ONE, limits, None).unwrap();
        assert!(worker.try_lease(ONE, limits, None).is_none());
        assert_eq!(worker.usage(), ONE);
        drop(first);
        assert!(worker.try_lease(ONE, limits, None).is_some());
    }

    #[test]
    fn an_idle_worker_admits_a_request_larger_than_its_cache() {
        let huge = Weight { kv_tokens: 1_000_000, ..ONE };
        assert!(
            worker().try_lease(huge, WorkerLimits { requests: 1, kv_tokens: 10 }, None).is_some()
        );
    }
}
