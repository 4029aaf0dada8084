//! [`Flight`]: what of an attempt is still at the engines, and is cancelled when dropped.

use std::sync::Arc;

use bytes::Bytes;
use router_core::fleet::{Lease, Worker};
use router_core::pair::Leg;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::abort::AbortGuard;
use super::fault::{Fault, Kind};

/// The prefill leg, running in a task of its own.
pub(crate) struct PrefillLeg {
    worker: Arc<Worker>,
    outcome: Option<oneshot::Receiver<Result<Bytes, Fault>>>,
    task: AbortHandle,
    guard: AbortGuard,
    /// The answer is wanted, or at least its failure.
    wanted: bool,
}

impl PrefillLeg {
    pub(crate) fn new(
        worker: Arc<Worker>,
        outcome: oneshot::Receiver<Result<Bytes, Fault>>,
        task: AbortHandle,
        guard: AbortGuard,
    ) -> PrefillLeg {
        PrefillLeg { worker, outcome: Some(outcome), task, guard, wanted: true }
    }

    async fn answer(&mut self) -> Result<Bytes, Fault> {
        let broken = |why: &str| Fault {
            leg: Some(Leg::Prefill),
            worker: Arc::clone(&self.worker),
            kind: Kind::Broken(why.to_owned()),
        };
        let Some(outcome) = &mut self.outcome else { return Err(broken("already answered")) };
        let answer = outcome.await.unwrap_or_else(|_| Err(broken("the task ended")));
        self.outcome = None;
        self.hear(&answer);
        answer
    }

    /// Nothing is to be aborted at an engine that has answered.
    fn hear(&mut self, answer: &Result<Bytes, Fault>) {
        if answer.as_ref().err().is_none_or(Fault::engine_is_done) {
            self.guard.disarm();
        }
    }
}

impl Drop for PrefillLeg {
    fn drop(&mut self) {
        // While a stream runs, nobody hears the prefill that ends.
        let ended = self.outcome.as_mut().and_then(|outcome| outcome.try_recv().ok());
        if let Some(answer) = ended {
            self.hear(&answer);
        }
        // The guard then aborts by name, if it is still armed.
        if self.wanted {
            self.task.abort();
        }
    }
}

/// Both legs of an attempt under way. Dropped before [`Flight::land`], it cancels and aborts
/// what still runs.
pub(crate) struct Flight {
    prefill: Option<PrefillLeg>,
    /// Decode's, or that of the engine that serves alone.
    guard: AbortGuard,
    lease: Arc<Lease>,
}

impl Flight {
    pub(crate) fn new(prefill: PrefillLeg, guard: AbortGuard, lease: Arc<Lease>) -> Flight {
        Flight { prefill: Some(prefill), guard, lease }
    }

    pub(crate) fn alone(guard: AbortGuard, lease: Arc<Lease>) -> Flight {
        Flight { prefill: None, guard, lease }
    }

    /// The worker whose answer the client gets.
    pub(crate) fn worker(&self) -> &Arc<Worker> {
        self.lease.worker()
    }

    /// The leg of that worker; `None` where it serves alone.
    pub(crate) fn leg(&self) -> Option<Leg> {
        self.prefill.as_ref().map(|_| Leg::Decode)
    }

    pub(crate) fn awaits_prefill(&self) -> bool {
        self.prefill.as_ref().is_some_and(|prefill| prefill.outcome.is_some())
    }

    /// Prefill's whole answer. Only while [`Flight::awaits_prefill`].
    pub(crate) async fn prefill_answer(&mut self) -> Result<Bytes, Fault> {
        match &mut self.prefill {
            Some(prefill) => prefill.answer().await,
            None => std::future::pending().await,
        }
    }

    /// A worker of this flight that has stopped answering probes.
    pub(crate) fn silent(&self) -> Option<Fault> {
        let waiting = self.prefill.as_ref().filter(|prefill| prefill.outcome.is_some());
        let prefill = waiting.map(|prefill| (Some(Leg::Prefill), &prefill.worker));
        let decode = Some((self.leg(), self.worker()));
        let silent =
            [prefill, decode].into_iter().flatten().find(|(_, worker)| worker.health.is_silent());
        silent.map(|(leg, worker)| Fault { leg, worker: Arc::clone(worker), kind: Kind::Silent })
    }

    /// One leg failed: if its engine is done with the request, there is nothing to abort there.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        if fault.leg != Some(Leg::Prefill) && fault.engine_is_done() {
            self.guard.disarm();
        }
    }

    /// The answer is whole. A prefill whose answer is still on its way is drained by its task.
    pub(crate) fn land(mut self) {
        self.guard.disarm();
        if let Some(prefill) = &mut self.prefill {
            prefill.guard.disarm();
            prefill.wanted = false;
        }
    }
}
