//! Whether a request whose attempt failed is retried on another pair.
//!
//! A request may itself be what crashes engines, and must not crash one after the other. After the
//! `--max-engine-crashes`-th crash the client gets an error, and its content is refused for a while:
//! [`CrashHistory`].
//!
//! [`CrashHistory`]: super::crash_history::CrashHistory

use std::sync::Arc;

use bytes::Bytes;
use router_core::fleet::{ObjectName, Phase, Pool, Verdict, Worker};
use router_core::sglang::{Endpoint, Request};

use super::crash_history::{ContentFingerprint, crashes_to_refuse};
use crate::gateway::placement::placer::Placement;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::dispatch::AttemptRequest;
use crate::gateway::upstream::fault::{Fault, FaultKind};

/// Maximum number of broken connections and silent engines of one request after which it is still
/// retried, not counting engines that died.
const MAX_BROKEN: u32 = 1;

/// Maximum number of retries of one request after engines refused it as too many.
const MAX_FULL: u32 = 1;

/// The failed attempts of one request.
#[derive(Debug, Default)]
pub(crate) struct RetryState {
    attempts: u32,
    broken: u32,
    deaths: u32,
    full: u32,
    /// Another worker was asked because the first may be at fault.
    has_asked_another: bool,
    /// The worker that refused the request, until another has answered or refused it.
    refused_by: Option<Arc<Worker>>,
}

/// The workers of one attempt, and their health before it.
pub(crate) struct AttemptWorkers {
    pub all: Vec<Arc<Worker>>,
    /// The workers that were not known to be down: if one of them is down now, it has died.
    alive: Vec<Arc<Worker>>,
    /// The workers that this request was the one to try.
    tried: Vec<Arc<Worker>>,
}

impl AttemptWorkers {
    pub(crate) fn of(placement: &Placement) -> AttemptWorkers {
        let all: Vec<_> = placement.leases().map(|lease| Arc::clone(lease.worker())).collect();
        let alive = |worker: &&Arc<Worker>| worker.health.verdict() != Verdict::Down;
        let alive = all.iter().filter(alive).cloned().collect();
        let tried = |worker: &&Arc<Worker>| worker.health.verdict() == Verdict::HalfOpen;
        let tried = all.iter().filter(tried).cloned().collect();
        AttemptWorkers { all, alive, tried }
    }

    /// The workers that the next attempt avoids. Either may have caused a transfer fault.
    pub(super) fn into_avoided(self, fault: Fault) -> Vec<Arc<Worker>> {
        if fault.about_transfer() { self.all } else { vec![fault.worker] }
    }
}

impl Gateway {
    /// Decides whether another pair is tried. Returns the fault as it is reported to the client.
    pub(crate) async fn decide_retry(
        &self,
        pool: &Pool,
        attempt: &AttemptRequest,
        mut fault: Fault,
        workers: &AttemptWorkers,
        state: &mut RetryState,
    ) -> (Fault, bool) {
        let limits = &self.settings.limits;
        state.attempts += 1;
        if fault.broke() && self.died(&pool.name, &fault.worker, workers).await {
            state.deaths += 1;
            let content = self.crashes.fingerprint(&pool.name, &attempt.request);
            let of_content = self.crashes.record(content, &fault.worker);
            tracing::warn!(
                worker = %fault.worker.name,
                crashes = of_content,
                "engine died during a request"
            );
            if state.deaths >= limits.max_engine_crashes
                || of_content >= crashes_to_refuse(limits.max_engine_crashes)
            {
                fault.kind = FaultKind::Died;
            }
        } else if fault.broke() || fault.is_silent() {
            state.broken += 1;
        }
        if self.is_refused_by_both(&fault, state) {
            return (fault, false);
        }
        let now_ms = self.dispatch.clock.now_ms();
        if fault.is_full() {
            state.full += 1;
            // Nothing is gained by asking again, and each leg costs an engine time.
            if state.full > MAX_FULL || all_full(pool, &fault.worker, now_ms) {
                return (fault, false);
            }
        }
        let retry = state.attempts < limits.max_attempts
            && (fault.retryable() && state.broken <= MAX_BROKEN
                || self.asks_another(&fault, workers, state));
        if retry && !pool.history.retry_budget.try_retry(now_ms) {
            self.metrics.retry_budget_exhausted.inc();
            return (fault, false);
        }
        (fault, retry)
    }

    /// Whether another worker has refused this request before: then the request is at fault, and neither
    /// worker.
    fn is_refused_by_both(&self, fault: &Fault, state: &mut RetryState) -> bool {
        let is_other = |first: &mut Arc<Worker>| !Arc::ptr_eq(first, &fault.worker);
        if !fault.is_refusal() {
            return false;
        }
        let Some(first) = state.refused_by.take_if(is_other) else { return false };
        self.dispatch.health.exonerated(&first);
        self.dispatch.health.exonerated(&fault.worker);
        true
    }

    /// Whether another worker is asked, once, for a request that this one refused or failed: this one may
    /// be at fault, since its peers refuse and fail less.
    fn asks_another(
        &self,
        fault: &Fault,
        workers: &AttemptWorkers,
        state: &mut RetryState,
    ) -> bool {
        if !fault.wants_second_opinion() || state.has_asked_another {
            return false;
        }
        let was_tried = workers.tried.iter().any(|worker| Arc::ptr_eq(worker, &fault.worker));
        if !self.dispatch.health.is_suspect(&fault.worker, was_tried) {
            return false;
        }
        state.has_asked_another = true;
        state.refused_by = fault.is_refusal().then(|| Arc::clone(&fault.worker));
        true
    }

    /// The request was served: if another worker has refused it before, that one is at fault.
    pub(super) fn settle_refusal(&self, workers: &AttemptWorkers, state: &mut RetryState) {
        let Some(first) = state.refused_by.take() else { return };
        if !workers.all.iter().any(|worker| Arc::ptr_eq(worker, &first)) {
            self.dispatch.health.convicted(&first);
        }
    }

    /// Whether the worker died while it had the request: it was alive before, it does not answer now,
    /// and its pod is not terminating.
    async fn died(
        &self,
        pool: &ObjectName,
        worker: &Arc<Worker>,
        workers: &AttemptWorkers,
    ) -> bool {
        let same = |other: &&Arc<Worker>| Arc::ptr_eq(other, worker);
        if !workers.alive.iter().any(|other| same(&other)) {
            return false;
        }
        if self.dispatch.probes.answers(worker).await {
            return false;
        }
        let fleet = self.fleet.snapshot();
        let member = fleet
            .pool(pool)
            .and_then(|pool| pool.members.iter().find(|member| same(&&member.worker)));
        member.is_some_and(|member| member.phase == Phase::Ready)
    }
}

/// Whether all workers with the role of `worker` have refused a request as too many within the last
/// second.
fn all_full(pool: &Pool, worker: &Arc<Worker>, now_ms: u64) -> bool {
    let found = pool.members.iter().find(|member| Arc::ptr_eq(&member.worker, worker));
    let Some(role) = found.map(|member| member.role) else { return false };
    let mut candidates = pool.members.iter().filter(|member| {
        member.role == role
            && member.phase == Phase::Ready
            && member.worker.health.verdict() != Verdict::Down
    });
    candidates.all(|member| member.worker.health.refused_recently(now_ms))
}

/// Maximum size of a streamed request whose body is kept to the end of its stream, in bytes: copying it
/// costs less than its fingerprint, which hardly any stream needs.
pub(crate) const MAX_KEPT_BODY: usize = 4 << 10;

/// What remains of a streamed request until its stream ends. A long body is not kept, since it may be of
/// `--max-body` bytes.
pub(crate) enum KeptContent {
    Body(Endpoint, Box<[u8]>),
    Fingerprint(ContentFingerprint),
}

/// Records the crash of the engine that streams a response: the client has seen a part, so the
/// request is not retried, and its client may send it again.
pub(crate) struct CrashWatch {
    gateway: Arc<Gateway>,
    /// Not the pool itself: a stream may outlast many snapshots of the fleet.
    pool: ObjectName,
    workers: AttemptWorkers,
    content: KeptContent,
}

impl CrashWatch {
    pub(crate) fn new(
        gateway: &Arc<Gateway>,
        pool: &ObjectName,
        workers: AttemptWorkers,
        content: KeptContent,
    ) -> CrashWatch {
        CrashWatch { gateway: Arc::clone(gateway), pool: pool.clone(), workers, content }
    }

    /// The worker's connection broke in the middle of the stream. A task finds out whether the engine
    /// died.
    pub(crate) fn on_broken(self, worker: Arc<Worker>) {
        let tasks = self.gateway.dispatch.tasks.clone();
        tasks.spawn(async move {
            if self.gateway.died(&self.pool, &worker, &self.workers).await {
                let Some(content) = self.fingerprint() else { return };
                let crashes = self.gateway.crashes.record(content, &worker);
                tracing::warn!(worker = %worker.name, crashes, "engine died during a stream");
            }
        });
    }

    /// `None` only for a body that was not parsed before.
    fn fingerprint(&self) -> Option<ContentFingerprint> {
        let (endpoint, body) = match &self.content {
            KeptContent::Fingerprint(fingerprint) => return Some(*fingerprint),
            KeptContent::Body(endpoint, body) => (*endpoint, Bytes::copy_from_slice(body)),
        };
        let allowed = &self.gateway.settings.allowed_fields;
        let request = Request::parse_with(endpoint, body, allowed).ok()?;
        Some(self.gateway.crashes.fingerprint(&self.pool, &request))
    }
}
