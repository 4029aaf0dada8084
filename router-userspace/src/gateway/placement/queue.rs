//! [`Admission`]: a request gets its workers at once, or waits in a queue until a lease ends.
//!
//! A prefill that is sent before its decode has capacity only uses up its bootstrap timeout, so
//! requests wait here. Queues are first come, first served. Each pool and model has its own, so that
//! a full model does not delay another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use router_core::fleet::{EngineRates, ObjectName, OnRelease, Phase, Pool, Worker, WorkerKey};
use router_core::schedule::{AgentTrust, Draw};
use router_core::sglang::Request;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::explain::ChoiceExplanation;
use super::observe::DecodeObservation;
use super::placer::{
    CandidateBuffers, Leased, Placement, PlacementError, PlacementRequest, Placer,
};
use crate::config::LimitFlags;
use crate::gateway::fleet_handle::FleetHandle;
use crate::scheduler_view::SchedulerView;

/// The requests that wait for the same workers: those of one pool and model. A request that only one
/// worker can serve waits in a queue for that worker.
type QueueKey = (ObjectName, Option<Arc<str>>, Option<WorkerKey>);

/// Capacity that other gateways free produces no wake-up, so the head of a queue polls at the
/// interval of the load frames.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Time for which requests wait for the workers of a pool that had some and has none: a rollout or a
/// restart, or a pool that scales from zero.
const SERVED_LATELY_MS: u64 = 5 * 60 * 1000;

/// Why a request gets no workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AdmissionError {
    /// No worker of the pool is ready: the pool, and what it lacks.
    NoWorkerReady(String),
    /// The pool does not serve this model.
    ModelNotFound(String),
    /// The request names no model, and the pool serves several.
    ModelRequired,
    /// As many requests wait for the pool as are allowed to.
    QueueFull,
    /// The request has waited this long, the longest that is allowed.
    QueueTimeout(Duration),
    /// The request's own deadline passed while it waited.
    Deadline,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    turn: Arc<Notify>,
}

/// The waiting requests, and the memory that a choice needs, under one lock.
#[derive(Debug, Default)]
struct Queues {
    waiting: HashMap<QueueKey, VecDeque<Waiter>>,
    buffers: CandidateBuffers,
}

/// The number of requests of each pool that are forwarded and wait until a worker is ready.
#[derive(Debug, Default)]
struct WaitingForwards(Mutex<HashMap<ObjectName, usize>>);

/// A request that waits so, until it is dropped.
struct WaitingForward<'a> {
    all: &'a WaitingForwards,
    pool: &'a ObjectName,
}

impl WaitingForwards {
    fn join<'a>(
        &'a self,
        pool: &'a ObjectName,
        max: usize,
    ) -> Result<WaitingForward<'a>, AdmissionError> {
        let mut waiting = self.0.lock();
        if waiting.get(pool).copied().unwrap_or(0) >= max {
            return Err(AdmissionError::QueueFull);
        }
        *waiting.entry(pool.clone()).or_default() += 1;
        Ok(WaitingForward { all: self, pool })
    }
}

impl Drop for WaitingForward<'_> {
    fn drop(&mut self) {
        let mut waiting = self.all.0.lock();
        if let Some(of_pool) = waiting.get_mut(self.pool) {
            *of_pool -= 1;
            if *of_pool == 0 {
                waiting.remove(self.pool);
            }
        }
    }
}

/// Gives requests their workers, in order.
pub(crate) struct Admission {
    fleet: Arc<FleetHandle>,
    view: SchedulerView,
    limits: LimitFlags,
    queue_timeout: Duration,
    turn: AtomicU64,
    waiting: AtomicUsize,
    forwards: WaitingForwards,
    queues: Mutex<Queues>,
    /// The last choice of a policy that predicts, for `/fleet`.
    last_choice: Mutex<Option<Arc<ChoiceExplanation>>>,
    /// Called by every lease when it ends.
    released: OnRelease,
}

impl Admission {
    pub(crate) fn new(
        fleet: Arc<FleetHandle>,
        view: SchedulerView,
        limits: LimitFlags,
        queue_timeout: Duration,
    ) -> Arc<Admission> {
        Arc::new_cyclic(|admission: &Weak<Admission>| Admission {
            released: released(admission.clone()),
            fleet,
            view,
            forwards: WaitingForwards::default(),
            limits,
            queue_timeout,
            turn: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            queues: Mutex::default(),
            last_choice: Mutex::default(),
        })
    }

    /// Leases the workers for `request`: at once, or after a wait for capacity. In a pool whose workers
    /// are not ready yet, or that had some lately, a request waits for a worker too.
    ///
    /// # Errors
    /// No worker is ready or was lately, the model is unknown, the queue is full, or the earlier of the
    /// queue's timeout and the request's `deadline` has passed.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        pool: &Pool,
        request: &PlacementRequest,
        deadline: Option<Instant>,
    ) -> Result<Placement, AdmissionError> {
        let since = Instant::now();
        let placer = self.placer(pool, request, AgentTrust::Trusted);
        let mut why = PlacementError::Full;
        let ticket = {
            let mut queues = self.queues.lock();
            // Usually no request waits, and no key has to be made.
            let is_empty = queues.waiting.is_empty()
                || queues.waiting.get(&queue_key(pool, request)).is_none_or(VecDeque::is_empty);
            let leased = if is_empty {
                placer.lease(&self.released, &mut queues.buffers)
            } else {
                Err(PlacementError::Full)
            };
            match leased {
                Err(PlacementError::NotReady)
                    if request.only.is_none() && self.may_become_ready(pool) =>
                {
                    why = PlacementError::NotReady;
                    self.join(&mut queues.waiting, queue_key(pool, request))?
                }
                Err(PlacementError::Full) => {
                    self.join(&mut queues.waiting, queue_key(pool, request))?
                }
                leased => {
                    drop(queues);
                    let placement = leased.map(|leased| self.finish(&placer, leased));
                    return placement.map_err(|why| refused(why, pool, request));
                }
            }
        };
        let queue_deadline = since + self.queue_timeout;
        let until = deadline.map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
        // Only the head of a queue is woken.
        if timeout_at(until, ticket.turn.notified()).await.is_ok() {
            loop {
                match ticket.try_again(request, since) {
                    Ok(placement) => return placement,
                    Err(now) => why = now,
                }
                let again = Instant::now() + POLL_INTERVAL;
                let woken = timeout_at(until.min(again), ticket.turn.notified()).await;
                if woken.is_err() && Instant::now() >= until {
                    break;
                }
            }
        }
        Err(match deadline {
            Some(deadline) if deadline <= queue_deadline => AdmissionError::Deadline,
            _ if why == PlacementError::NotReady => AdmissionError::NoWorkerReady(none_ready(pool)),
            _ => AdmissionError::QueueTimeout(self.queue_timeout),
        })
    }

    /// Whether waiting may help although no worker is ready.
    fn may_become_ready(&self, pool: &Pool) -> bool {
        let starting = || pool.members.iter().any(|member| member.phase == Phase::NotReady);
        let now_ms = self.view.clock.now_ms();
        let served_lately = || pool.history.served_within(now_ms, SERVED_LATELY_MS);
        // A pool counts as serving until its engines' information is read and contradicts its
        // configuration.
        let waits_in_vain = || pool.is_misconfigured();
        starting() || (served_lately() && !waits_in_vain())
    }

    /// Waits until a worker of the pool is ready, for a request that is forwarded to one and takes no
    /// capacity: as long as others wait for the pool. Returns the pool as it is then; at once where a
    /// worker is ready, or where none is expected.
    ///
    /// # Errors
    /// As many requests wait so for this pool as may be queued, or the earlier of the queue's timeout and
    /// the request's `deadline` has passed.
    pub(crate) async fn until_ready(
        &self,
        pool: &Arc<Pool>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Pool>, AdmissionError> {
        let is_ready = |pool: &Pool| pool.members.iter().any(|member| member.phase == Phase::Ready);
        if is_ready(pool) || !self.may_become_ready(pool) {
            return Ok(Arc::clone(pool));
        }
        let _counted = self.forwards.join(&pool.name, self.limits.max_queued)?;
        let queue_deadline = Instant::now() + self.queue_timeout;
        let until = deadline.map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
        let mut now = Arc::clone(pool);
        // Before the fleet is read, so that none is missed.
        let mut changes = self.fleet.changes();
        loop {
            if let Some(current) = self.fleet.load().pool(&pool.name) {
                now = Arc::clone(current);
            }
            if is_ready(&now) {
                return Ok(now);
            }
            if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        Err(match deadline {
            Some(deadline) if deadline <= queue_deadline => AdmissionError::Deadline,
            _ => AdmissionError::NoWorkerReady(none_ready(&now)),
        })
    }

    /// What the stream of the placement's answering worker is to be observed with.
    pub(crate) fn decode_observation(
        &self,
        pool: &Pool,
        placement: &Placement,
    ) -> Option<DecodeObservation> {
        let worker = placement.leases().last()?.worker();
        Some(DecodeObservation::new(&self.view, pool, worker))
    }

    /// The hashes of the blocks of a request's prompt; empty if the policy does not use prefixes.
    pub(crate) fn blocks(&self, request: &Request) -> Vec<u64> {
        self.view.blocks(request)
    }

    /// The estimated rates of a pool's engines together.
    pub(crate) fn rates(&self, pool: &Pool) -> EngineRates {
        self.view.rates(pool)
    }

    /// The last choice of a policy that predicts.
    pub(crate) fn last_choice(&self) -> Option<Arc<ChoiceExplanation>> {
        self.last_choice.lock().clone()
    }

    /// The number of requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets the head of every queue try again. Called when a lease ends, a worker comes back, or the
    /// fleet changes.
    pub(crate) fn wake(&self) {
        // Sequentially consistent with the increment in `join`: either the joiner examines the
        // workers after the lease ended, or this load sees that a request waits.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        for queue in self.queues.lock().waiting.values() {
            if let Some(head) = queue.front() {
                head.turn.notify_one();
            }
        }
    }

    /// The placer's lease is to be called under the queues' lock: leases are taken nowhere else, so
    /// a worker that had capacity when it was examined still has it when it is leased.
    fn placer<'a>(
        &'a self,
        pool: &'a Pool,
        request: &'a PlacementRequest,
        agent_trust: AgentTrust,
    ) -> Placer<'a> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let draw = Draw { chance: rand::random(), turn };
        let (view, now_ms) = (&self.view, self.view.clock.now_ms());
        Placer { pool, request, view, draw, limits: &self.limits, agent_trust, now_ms }
    }

    /// Makes a placement of the leases, without the lock.
    fn finish(&self, placer: &Placer<'_>, leased: Leased) -> Placement {
        let placement = placer.finish(leased);
        if let Placement::Pair { explanation: Some(explanation), .. } = &placement {
            *self.last_choice.lock() = Some(Arc::clone(explanation));
        }
        placement
    }

    fn join(
        self: &Arc<Self>,
        queues: &mut HashMap<QueueKey, VecDeque<Waiter>>,
        key: QueueKey,
    ) -> Result<QueueTicket, AdmissionError> {
        let of_pool = queues.iter().filter(|(queue, _)| queue.0 == key.0);
        let waiting: usize = of_pool.map(|(_, queue)| queue.len()).sum();
        if waiting >= self.limits.max_queued {
            return Err(AdmissionError::QueueFull);
        }
        let ticket = self.turn.fetch_add(1, Ordering::Relaxed);
        let turn = Arc::new(Notify::new());
        // The head of a queue tries once more after it is counted: a lease may have ended between
        // its first try and now.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let queue = queues.entry(key.clone()).or_default();
        if queue.is_empty() {
            turn.notify_one();
        }
        queue.push_back(Waiter { ticket, turn: Arc::clone(&turn) });
        Ok(QueueTicket { admission: Arc::clone(self), key, ticket, turn })
    }
}

/// A request's place in its queue. Dropping it leaves the queue and lets the next head try.
struct QueueTicket {
    admission: Arc<Admission>,
    key: QueueKey,
    ticket: u64,
    turn: Arc<Notify>,
}

impl QueueTicket {
    /// Tries to lease the workers. An error says why to wait on.
    fn try_again(
        &self,
        request: &PlacementRequest,
        since: Instant,
    ) -> Result<Result<Placement, AdmissionError>, PlacementError> {
        let waited_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let agent_trust = AgentTrust::after(waited_ms, self.admission.view.poll_ms);
        let fleet = self.admission.fleet.load();
        let Some(pool) = fleet.pool(&self.key.0) else {
            let gone = format!("pool {} was removed", self.key.0);
            return Ok(Err(AdmissionError::NoWorkerReady(gone)));
        };
        let placer = self.admission.placer(pool, request, agent_trust);
        // Under the lock, so that no later request takes the capacity.
        let leased =
            placer.lease(&self.admission.released, &mut self.admission.queues.lock().buffers);
        match leased {
            Ok(leased) => Ok(Ok(self.admission.finish(&placer, leased))),
            // During a rollout no worker may be ready for a moment: the deadline decides.
            Err(why @ (PlacementError::Full | PlacementError::NotReady)) => Err(why),
            Err(PlacementError::UnknownModel) => {
                Ok(Err(refused(PlacementError::UnknownModel, pool, request)))
            }
        }
    }
}

impl Drop for QueueTicket {
    fn drop(&mut self) {
        let mut queues = self.admission.queues.lock();
        if let Some(queue) = queues.waiting.get_mut(&self.key) {
            queue.retain(|waiter| waiter.ticket != self.ticket);
            match queue.front() {
                Some(next) => next.turn.notify_one(),
                None => {
                    queues.waiting.remove(&self.key);
                }
            }
        }
        self.admission.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn released(admission: Weak<Admission>) -> OnRelease {
    Arc::new(move |worker: &Worker| {
        if let Some(admission) = admission.upgrade() {
            worker.lease_history.record(admission.view.clock.now_ms(), worker.usage());
            admission.wake();
        }
    })
}

fn queue_key(pool: &Pool, request: &PlacementRequest) -> QueueKey {
    let compatible = pool.serving(request.model.as_deref()).next();
    let only = request.only.as_ref().map(|worker| worker.key.clone());
    (pool.name.clone(), compatible.and_then(|compatible| compatible.models.first().cloned()), only)
}

fn refused(why: PlacementError, pool: &Pool, request: &PlacementRequest) -> AdmissionError {
    match why {
        PlacementError::UnknownModel => match &request.model {
            Some(model) => AdmissionError::ModelNotFound(model.clone()),
            None => AdmissionError::ModelRequired,
        },
        PlacementError::Full | PlacementError::NotReady => {
            AdmissionError::NoWorkerReady(none_ready(pool))
        }
    }
}

/// Why no worker of the pool serves a request, in words.
pub(crate) fn none_ready(pool: &Pool) -> String {
    let serves = if pool.can_serve() { ", none of which can serve this request" } else { "" };
    format!("pool {}: {}{serves}", pool.name, pool.shortage())
}

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod tests;
