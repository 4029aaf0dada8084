//! [`PoolHistory`]: what is remembered of a pool from one snapshot to the next.

use std::sync::atomic::{AtomicU64, Ordering};

use super::retry_budget::RetryBudget;

/// State of a pool that outlives its snapshots.
#[derive(Debug, Default)]
pub struct PoolHistory {
    pub retry_budget: RetryBudget,
    /// When a snapshot with ready workers was last replaced, plus 1; 0 is never.
    served_until_ms: AtomicU64,
}

impl PoolHistory {
    /// Records that the pool had ready workers until now.
    pub fn served_until(&self, now_ms: u64) {
        self.served_until_ms.store(now_ms.saturating_add(1), Ordering::Relaxed);
    }

    /// Whether the pool had ready workers within the last `limit_ms`.
    pub fn served_within(&self, now_ms: u64, limit_ms: u64) -> bool {
        let until_ms = self.served_until_ms.load(Ordering::Relaxed);
        until_ms != 0 && now_ms.saturating_sub(until_ms - 1) < limit_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_never_served_has_not_served_lately() {
        let history = PoolHistory::default();
        assert!(!history.served_within(0, 1000));
        history.served_until(0);
        assert!(history.served_within(999, 1000));
        assert!(!history.served_within(1000, 1000));
    }
}
