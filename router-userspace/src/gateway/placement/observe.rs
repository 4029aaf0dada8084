//! What requests teach the scheduler: the times that they take, against the times that were
//! predicted.
//!
//! [`sent`] is called when workers are chosen, [`Prediction::observe`] by `dispatch` when prefill has
//! answered, [`DecodeObservation::observe`] by `relay` when a stream has ended well.

use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::{Pool, PrefillSample, RateEstimators, Weight, Worker, cache_of};
use router_core::schedule::{Chosen, Estimate, step_us_of_idle};

use crate::clock::MonotonicClock;
use crate::scheduler_view::SchedulerView;

/// Records that a prompt was sent: its prefill rank has the prompt's blocks in its cache from now
/// on. Does nothing if the policy does not use prefixes.
pub(crate) fn sent(
    view: &SchedulerView,
    pool: &Pool,
    chosen: &Chosen,
    (prefill, rank): (&Worker, u32),
    (weight, blocks): (Weight, &[u64]),
) {
    if chosen.work_bytes.is_none() {
        return;
    }
    if !blocks.is_empty() {
        view.prefixes().insert(cache_of(prefill.identity, rank), blocks);
    }
    pool.rate_estimators.on_request(weight.kv_tokens as f32, view.clock.now_ms());
}

/// What was predicted of a prefill, to be compared with the time that it takes.
#[derive(Clone, Debug)]
pub(crate) struct Prediction {
    pool: Arc<RateEstimators>,
    /// The pool's prefill rate at the time of the prediction.
    usual_us_per_byte: f32,
    clock: MonotonicClock,
    sent_ms: u64,
    /// The work of this prompt and of those queued before it, in bytes.
    ahead_bytes: f32,
    /// The predicted time of that work.
    ahead_ms: f32,
    transfer_ms: f32,
    /// The request was expected to wait for capacity at decode: its time is not used for prefill.
    waits_for_decode: bool,
    _queued: Arc<QueuedPrefill>,
}

impl Prediction {
    /// The prediction for a chosen pair; puts the prompt into the queue of its prefill. `None` if
    /// the policy does not predict.
    pub(crate) fn new(
        view: &SchedulerView,
        pool: &Pool,
        chosen: &Chosen,
        prefill: &Arc<Worker>,
    ) -> Option<Prediction> {
        let Estimate { wait_ms, admission_ms, prefill_ms, transfer_ms, work_bytes, .. } =
            chosen.estimate?;
        let now_ms = view.clock.now_ms();
        let of_pool = view.rates(pool);
        let rates = prefill.rate_estimators.rates(&of_pool, now_ms);
        Some(Prediction {
            pool: Arc::clone(&pool.rate_estimators),
            usual_us_per_byte: of_pool.prefill_us_per_byte,
            clock: view.clock,
            sent_ms: now_ms,
            ahead_bytes: (wait_ms + prefill_ms) * 1000.0 / rates.prefill_us_per_byte.max(1e-6),
            ahead_ms: wait_ms + prefill_ms,
            transfer_ms,
            waits_for_decode: admission_ms > 0.0,
            _queued: Arc::new(QueuedPrefill::join(prefill, work_bytes, view.clock)),
        })
    }

    /// The prefill has answered now.
    pub(crate) fn observe(&self, prefill: &Worker) {
        if self.waits_for_decode {
            return;
        }
        let now_ms = self.clock.now_ms();
        let took_ms = now_ms.saturating_sub(self.sent_ms) as f32;
        let work_ms = (took_ms - self.transfer_ms).max(took_ms / 5.0);
        let sample = PrefillSample {
            work_bytes: self.ahead_bytes,
            ms: work_ms,
            predicted_ms: self.ahead_ms,
            usual_us_per_byte: self.usual_us_per_byte,
            sent_ms: self.sent_ms,
            now_ms,
        };
        prefill.rate_estimators.on_prefill(&self.pool, sample);
    }
}

/// A prompt in the queue of its prefill worker, until it is computed or given up.
#[derive(Debug)]
struct QueuedPrefill {
    worker: Arc<Worker>,
    ticket: u64,
    clock: MonotonicClock,
}

impl QueuedPrefill {
    fn join(worker: &Arc<Worker>, work_bytes: f32, clock: MonotonicClock) -> QueuedPrefill {
        let ticket = worker.prefill_queue().push(work_bytes, clock.now_ms());
        QueuedPrefill { worker: Arc::clone(worker), ticket, clock }
    }
}

impl Drop for QueuedPrefill {
    fn drop(&mut self) {
        self.worker.prefill_queue().remove(self.ticket, self.clock.now_ms());
    }
}

/// The worker that streams an answer, and what is updated when the stream has ended well.
#[derive(Clone, Debug)]
pub(crate) struct DecodeObservation {
    view: SchedulerView,
    pool: Arc<RateEstimators>,
    worker: Arc<Worker>,
}

impl DecodeObservation {
    pub(crate) fn new(
        view: &SchedulerView,
        pool: &Pool,
        worker: &Arc<Worker>,
    ) -> DecodeObservation {
        let (view, pool) = (view.clone(), Arc::clone(&pool.rate_estimators));
        DecodeObservation { view, pool, worker: Arc::clone(worker) }
    }

    /// A stream of `tokens` has ended whose events came `gap` apart. The gap is not used if an agent
    /// reports the worker's step times: it measures them itself.
    pub(crate) fn observe(&self, tokens: u64, gap: Duration) {
        let now_us = self.view.clock.now_us();
        let now_ms = now_us / 1000;
        let itl_ms = gap.as_secs_f32() * 1000.0;
        self.pool.on_response(tokens as f32, now_ms);
        let has_agent = self.worker.load.get(now_us).is_some_and(|load| !load.is_stale());
        if !has_agent && itl_ms > 0.0 {
            let batch = self.worker.usage().kv_tokens as f32;
            let step_us = step_us_of_idle(itl_ms * 1000.0, batch, &self.view.assumptions);
            self.pool.on_pool_decode_step(step_us, now_ms);
            self.worker.rate_estimators.on_decode_step(step_us, now_ms);
        }
    }
}
