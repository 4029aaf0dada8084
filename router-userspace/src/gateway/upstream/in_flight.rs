//! [`InFlight`]: the requests of one attempt that run at engines, cancelled when dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use router_core::fleet::{GhostWeight, Lease, Worker};
use router_core::pair::{Leg, Pair};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::abort::AbortGuard;
use super::fault::{Fault, FaultKind};

/// The prefill leg, running in a task of its own.
pub(crate) struct PrefillLeg {
    worker: Arc<Worker>,
    outcome: Option<oneshot::Receiver<Result<Bytes, Fault>>>,
    task: AbortHandle,
    guard: AbortGuard,
    /// The worker's answers before this request.
    answers_before: u64,
    /// Decode has answered: a timeout of prefill from then on is its own, and its task counts it.
    decode_answered: Arc<AtomicBool>,
    /// The task is aborted when the leg is dropped.
    abort_on_drop: bool,
}

impl PrefillLeg {
    pub(crate) fn new(
        worker: Arc<Worker>,
        outcome: oneshot::Receiver<Result<Bytes, Fault>>,
        task: AbortHandle,
        guard: AbortGuard,
        decode_answered: Arc<AtomicBool>,
    ) -> PrefillLeg {
        PrefillLeg {
            answers_before: worker.answers(),
            outcome: Some(outcome),
            abort_on_drop: true,
            worker,
            task,
            guard,
            decode_answered,
        }
    }

    async fn answer(&mut self) -> Result<Bytes, Fault> {
        let broken = |why: &str| Fault {
            leg: Some(Leg::Prefill),
            worker: Arc::clone(&self.worker),
            kind: FaultKind::Broken(why.to_owned()),
        };
        let Some(outcome) = &mut self.outcome else { return Err(broken("already answered")) };
        let answer = outcome.await.unwrap_or_else(|_| Err(broken("the task ended")));
        self.outcome = None;
        self.disarm_if_done(&answer);
        answer
    }

    /// An engine that has answered has nothing to abort.
    fn disarm_if_done(&mut self, answer: &Result<Bytes, Fault>) {
        if answer.as_ref().err().is_none_or(Fault::engine_is_done) {
            self.guard.disarm();
        }
    }
}

impl Drop for PrefillLeg {
    fn drop(&mut self) {
        // While a stream runs, the outcome of its prefill is not read.
        let is_running = match self.outcome.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(answer)) => {
                self.disarm_if_done(&answer);
                false
            }
            Some(Err(TryRecvError::Empty)) => true,
            Some(Err(TryRecvError::Closed)) | None => false,
        };
        // The guard then sends the abort, if it is still armed: also if the task has given the request up.
        if is_running && self.abort_on_drop {
            self.guard.end(self.task.clone());
        }
    }
}

/// The legs of an attempt. Dropped before [`InFlight::complete`], it cancels and aborts the ones that
/// still run.
pub(crate) struct InFlight {
    prefill: Option<PrefillLeg>,
    /// Aborts decode, or the engine that serves alone.
    guard: AbortGuard,
    lease: Arc<Lease>,
    ghosts: Arc<Pair<GhostWeight>>,
    began: Instant,
    /// The worker's answers before this request.
    answers_before: u64,
}

impl InFlight {
    pub(crate) fn new(
        prefill: PrefillLeg,
        guard: AbortGuard,
        lease: Arc<Lease>,
        ghosts: Arc<Pair<GhostWeight>>,
    ) -> InFlight {
        let answers_before = lease.worker().answers();
        let (prefill, began) = (Some(prefill), Instant::now());
        InFlight { prefill, guard, lease, ghosts, began, answers_before }
    }

    pub(crate) fn alone(guard: AbortGuard, lease: Arc<Lease>) -> InFlight {
        let decode = GhostWeight::new(lease.weight());
        let ghosts = Arc::new(Pair { prefill: GhostWeight::default(), decode });
        let (answers_before, began) = (lease.worker().answers(), Instant::now());
        InFlight { prefill: None, guard, lease, ghosts, began, answers_before }
    }

    /// The worker whose answer the client gets.
    pub(crate) fn worker(&self) -> &Arc<Worker> {
        self.lease.worker()
    }

    /// What the worker of a leg keeps of a request that it fails.
    pub(crate) fn ghost(&self, leg: Option<Leg>) -> &GhostWeight {
        &self.ghosts[leg.unwrap_or(Leg::Decode)]
    }

    /// The leg of that worker; `None` if it serves alone.
    pub(crate) fn leg(&self) -> Option<Leg> {
        self.prefill.as_ref().map(|_| Leg::Decode)
    }

    /// The workers of both legs. `None` if one worker serves alone.
    pub(crate) fn pair(&self) -> Option<Pair<&Arc<Worker>>> {
        let prefill = self.prefill.as_ref()?;
        Some(Pair { prefill: &prefill.worker, decode: self.worker() })
    }

    /// Decode's answer has begun.
    pub(crate) fn decode_answered(&self) {
        if let Some(prefill) = &self.prefill {
            prefill.decode_answered.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn awaits_prefill(&self) -> bool {
        self.prefill.as_ref().is_some_and(|prefill| prefill.outcome.is_some())
    }

    /// Prefill's whole answer. To be called only while [`InFlight::awaits_prefill`].
    pub(crate) async fn prefill_answer(&mut self) -> Result<Bytes, Fault> {
        match &mut self.prefill {
            Some(prefill) => prefill.answer().await,
            None => std::future::pending().await,
        }
    }

    /// The fault of a worker that has stopped answering probes.
    pub(crate) fn silent_worker(&self) -> Option<Fault> {
        let waiting = self.prefill.as_ref().filter(|prefill| prefill.outcome.is_some());
        let prefill = waiting.map(|prefill| (Some(Leg::Prefill), &prefill.worker));
        let decode = Some((self.leg(), self.worker()));
        let silent =
            [prefill, decode].into_iter().flatten().find(|(_, worker)| worker.health.is_silent());
        silent.map(|(leg, worker)| Fault {
            leg,
            worker: Arc::clone(worker),
            kind: FaultKind::Silent,
        })
    }

    /// Names the leg that a timeout is to be blamed on while decode has not answered. If prefill has not
    /// answered either, both legs wait for one of them, whichever timer ends first. A worker that has
    /// answered other requests meanwhile is not the one. If that does not tell,
    /// [`Worker::blames_decode`] does.
    pub(crate) fn blame_timeout(&self, fault: Fault) -> Fault {
        let (FaultKind::Timeout { limit, .. }, Some(prefill)) = (&fault.kind, &self.prefill) else {
            return fault;
        };
        let prefill_waits = fault.leg == Some(Leg::Prefill) || prefill.outcome.is_some();
        if !prefill_waits {
            return fault;
        }
        let prefill_works = prefill.worker.answers() > prefill.answers_before;
        let decode_works = self.worker().answers() > self.answers_before;
        let decode_is_to_blame = if prefill_works == decode_works {
            prefill.worker.blames_decode(self.worker())
        } else {
            prefill_works
        };
        let (leg, worker) = match decode_is_to_blame {
            true => (Leg::Decode, self.worker()),
            false => (Leg::Prefill, &prefill.worker),
        };
        if fault.leg == Some(leg) {
            return fault;
        }
        let kind = FaultKind::Timeout { waited_for: "its answer", limit: *limit };
        Fault { leg: Some(leg), worker: Arc::clone(worker), kind }
    }

    /// One leg failed: if its engine is done with the request, it has nothing to abort.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        if fault.leg != Some(Leg::Prefill) && fault.engine_is_done() {
            self.guard.disarm();
        }
    }

    /// The answer is whole. A prefill that has not answered yet is drained by its task.
    pub(crate) fn complete(mut self) {
        self.worker().outcomes.took(self.began.elapsed());
        self.guard.disarm();
        if let Some(prefill) = &mut self.prefill {
            prefill.guard.disarm();
            prefill.abort_on_drop = false;
        }
    }
}
