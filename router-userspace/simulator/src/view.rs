//! [`View`]: what of a modelled worker can be seen from outside.

use crate::history::History;

/// What the kernel sees at a pod, and what the engine tells who asks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    /// Requests whose answer has not ended.
    pub(crate) requests: f64,
    /// Bytes of the requests whose answer has not begun.
    pub(crate) waiting_bytes: f64,
    pub(crate) itl_ms: f64,
    /// Bytes a millisecond that background traffic leaves, and that KV cache takes.
    pub(crate) free: f64,
    pub(crate) kv: f64,
    /// Tokens waiting or held, as the engine reports them: only for policies that poll.
    pub(crate) tokens: u64,
}

/// The views of all workers, prefills first.
#[derive(Debug)]
pub(crate) struct Views {
    workers: Vec<History<View>>,
    /// How old a frame is when it is used.
    pub(crate) age_ms: f64,
}

impl Views {
    pub(crate) fn new(workers: usize, age_ms: f64) -> Views {
        Views { workers: (0..workers).map(|_| History::default()).collect(), age_ms }
    }

    pub(crate) fn set(&mut self, worker: usize, now: f64, view: View) {
        self.workers[worker].set(now, view);
    }

    /// The last frame.
    pub(crate) fn frame(&self, worker: usize, now: f64) -> View {
        self.workers[worker].before(now, self.age_ms)
    }

    /// What a poll told that was made `age` ms ago.
    pub(crate) fn polled(&self, worker: usize, now: f64, age: f64) -> View {
        self.workers[worker].before(now, age)
    }
}
