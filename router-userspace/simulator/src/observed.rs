//! [`ObservedWorker`]: what gateways can observe of a modelled worker.

use crate::history::History;

/// What an agent measures at a pod, and what the engine reports when polled.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ObservedWorker {
    /// Requests whose response has not ended.
    pub(crate) requests: f64,
    /// Bytes of the requests whose response has not started.
    pub(crate) waiting_bytes: f64,
    pub(crate) itl_ms: f64,
    /// Bandwidth that background traffic leaves, in bytes per millisecond.
    pub(crate) free: f64,
    /// Bandwidth that KV cache uses, in bytes per millisecond.
    pub(crate) kv: f64,
    /// Tokens of queued and running requests, as the engine reports them; only for polling policies.
    pub(crate) tokens: u64,
}

/// The histories of all workers, prefills first.
#[derive(Debug)]
pub(crate) struct ObservedWorkers {
    workers: Vec<History<ObservedWorker>>,
    /// Age of a frame when it is used.
    pub(crate) age_ms: f64,
}

impl ObservedWorkers {
    pub(crate) fn new(workers: usize, age_ms: f64) -> ObservedWorkers {
        ObservedWorkers { workers: (0..workers).map(|_| History::default()).collect(), age_ms }
    }

    pub(crate) fn set(&mut self, worker: usize, now: f64, observed_worker: ObservedWorker) {
        self.workers[worker].set(now, observed_worker);
    }

    /// Returns the last frame of an agent.
    pub(crate) fn frame(&self, worker: usize, now: f64) -> ObservedWorker {
        self.workers[worker].before(now, self.age_ms)
    }

    /// Returns the result of a poll `age` ms ago.
    pub(crate) fn polled(&self, worker: usize, now: f64, age: f64) -> ObservedWorker {
        self.workers[worker].before(now, age)
    }
}
