//! [`LeaseHistory`]: this gateway's recent leases on a worker, to subtract from what the kernel
//! measured at that time.

use std::collections::VecDeque;

use super::Usage;
use parking_lot::Mutex;

/// Maximum number of changes that are kept.
const MAX_CHANGES: usize = 64;
/// Time for which changes are kept. Load frames are younger.
const MAX_AGE_MS: u64 = 500;

/// The last changes of a worker's leases, at most one per millisecond.
#[derive(Debug, Default)]
pub struct LeaseHistory(Mutex<VecDeque<(u64, Usage)>>);

impl LeaseHistory {
    /// Records that the leases add up to `usage` from `now_ms` on.
    pub fn record(&self, now_ms: u64, usage: Usage) {
        let mut past = self.0.lock();
        if past.capacity() <= MAX_CHANGES {
            // Allocate once: leases are taken under a lock that must not wait for an allocation.
            past.reserve_exact(MAX_CHANGES + 1);
        }
        match past.back_mut() {
            Some((at, last)) if *at >= now_ms => *last = usage,
            _ => past.push_back((now_ms, usage)),
        }
        let old = now_ms.saturating_sub(MAX_AGE_MS);
        while past.len() > MAX_CHANGES || past.get(1).is_some_and(|(at, _)| *at < old) {
            past.pop_front();
        }
    }

    /// Returns the usage at `then_ms`. Before the first recorded change it is zero.
    ///
    /// ```
    /// use router_core::fleet::{LeaseHistory, Usage};
    ///
    /// let history = LeaseHistory::default();
    /// let one = Usage { requests: 1, ..Usage::default() };
    /// history.record(1_000, one);
    /// history.record(1_200, Usage::default());
    /// assert_eq!(history.at(1_100), one);
    /// assert_eq!((history.at(900), history.at(1_200)), (Usage::default(), Usage::default()));
    /// ```
    pub fn at(&self, then_ms: u64) -> Usage {
        let past = self.0.lock();
        let after = past.partition_point(|(at, _)| *at <= then_ms);
        match after.checked_sub(1) {
            Some(last) => past[last].1,
            // Earlier changes were dropped: the oldest that is left is the nearest.
            None if past.len() >= MAX_CHANGES => {
                past.front().map(|(_, usage)| *usage).unwrap_or_default()
            }
            None => Usage::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded() {
        let history = LeaseHistory::default();
        for ms in 0..10_000 {
            history.record(ms, Usage { requests: ms, ..Usage::default() });
        }
        assert!(history.0.lock().len() <= MAX_CHANGES);
        assert_eq!(history.at(9_990).requests, 9_990);
        assert_eq!(history.at(20_000).requests, 9_999);
        assert_eq!(history.at(5).requests, 10_000 - MAX_CHANGES as u64, "the oldest that is left");
    }

    #[test]
    fn the_last_change_of_a_millisecond_counts() {
        let history = LeaseHistory::default();
        history.record(5, Usage { requests: 1, ..Usage::default() });
        history.record(5, Usage { requests: 2, ..Usage::default() });
        assert_eq!(history.at(5).requests, 2);
    }
}
