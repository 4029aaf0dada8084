//! [`GhostLeases`]: the weights of failed requests, kept for as long as the requests would have taken.
//!
//! A worker that refuses every request at once is idle by its leases, and would attract all traffic. A
//! ghost lease lets it look as busy as it would be if it served. It counts in choices only, never against
//! a worker's capacity.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::worker::{Usage, Weight};

/// Time of a ghost lease while the time of a request is not known.
pub const DEFAULT_GHOST_MS: u64 = 1_000;
/// Maximum time of a ghost lease.
pub const MAX_GHOST_MS: u64 = 60_000;
/// Maximum number of ghost leases of a worker that are kept apart: a choice reads them under a lock.
const MAX_GHOSTS: usize = 64;

/// The weight of a request for a ghost lease, which it leaves once, also if several of its samples fail.
#[derive(Debug, Default)]
pub struct GhostWeight {
    weight: Weight,
    is_taken: AtomicBool,
}

impl GhostWeight {
    pub fn new(weight: Weight) -> GhostWeight {
        GhostWeight { weight, is_taken: AtomicBool::new(false) }
    }

    /// Returns the weight the first time, and `None` from then on.
    pub fn take(&self) -> Option<Weight> {
        (!self.is_taken.swap(true, Ordering::Relaxed)).then_some(self.weight)
    }
}

/// The ghost leases of one worker.
#[derive(Debug, Default)]
pub struct GhostLeases {
    /// Number of ghosts, so that a choice takes no lock where there are none.
    count: AtomicUsize,
    ghosts: Mutex<Vec<Ghost>>,
}

#[derive(Clone, Copy, Debug)]
struct Ghost {
    until_ms: u64,
    weight: Weight,
}

impl GhostLeases {
    /// Counts `weight` for `time_ms`, at most [`MAX_GHOST_MS`]. Beyond the maximum number of ghosts, it
    /// ends with the one that ends first.
    pub fn add(&self, weight: Weight, now_ms: u64, time_ms: u64) {
        let until_ms = now_ms.saturating_add(time_ms.min(MAX_GHOST_MS));
        let mut ghosts = self.ghosts.lock();
        ghosts.retain(|ghost| ghost.until_ms > now_ms);
        let is_full = ghosts.len() >= MAX_GHOSTS;
        match ghosts.iter_mut().min_by_key(|ghost| ghost.until_ms).filter(|_| is_full) {
            Some(first) => first.weight = first.weight.plus(weight),
            None => ghosts.push(Ghost { until_ms, weight }),
        }
        self.count.store(ghosts.len(), Ordering::Relaxed);
    }

    /// Returns the sum of the weights at `now_ms`. Drops those whose time is over.
    pub fn sum(&self, now_ms: u64) -> Usage {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Usage::default();
        }
        let mut ghosts = self.ghosts.lock();
        ghosts.retain(|ghost| ghost.until_ms > now_ms);
        self.count.store(ghosts.len(), Ordering::Relaxed);
        ghosts.iter().fold(Usage::default(), |sum, ghost| sum.plus(ghost.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Weight =
        Weight { requests: 1, prompt_bytes: 100, kv_tokens: 40, exchanges: 1, wire_bytes: 120 };

    #[test]
    fn a_ghost_counts_for_its_time() {
        let ghosts = GhostLeases::default();
        assert_eq!(ghosts.sum(0), Usage::default());
        ghosts.add(ONE, 1_000, 200);
        ghosts.add(ONE, 1_100, 10 * MAX_GHOST_MS);
        assert_eq!(ghosts.sum(1_199), ONE.plus(ONE));
        assert_eq!(ghosts.sum(1_200), ONE);
        assert_eq!(ghosts.sum(1_100 + MAX_GHOST_MS), Usage::default());
    }

    #[test]
    fn a_request_leaves_its_weight_once() {
        let ghost = GhostWeight::new(ONE);
        assert_eq!((ghost.take(), ghost.take()), (Some(ONE), None));
    }

    #[test]
    fn ghosts_are_bounded_and_their_weight_is_not_lost() {
        let ghosts = GhostLeases::default();
        for ms in 0..1_000 {
            ghosts.add(ONE, 0, 1_000 + ms);
        }
        assert_eq!(ghosts.ghosts.lock().len(), MAX_GHOSTS);
        assert_eq!(ghosts.sum(0).requests, 1_000);
        assert_eq!(ghosts.sum(1_000 + 1_000), Usage::default());
    }
}
