//! [`LeaseHistory`]: what this gateway had on a worker a moment ago, to be subtracted from what the kernel
//! saw there then.

use std::collections::VecDeque;

use super::Usage;
use parking_lot::Mutex;

/// Changes that are remembered, and for how long. Frames are younger.
const KEPT: usize = 64;
const KEPT_MS: u64 = 500;

/// The last changes of a worker's leases, a millisecond's as one.
#[derive(Debug, Default)]
pub struct LeaseHistory(Mutex<VecDeque<(u64, Usage)>>);

impl LeaseHistory {
    /// The leases add up to `usage` as of now.
    pub fn record(&self, now_ms: u64, usage: Usage) {
        let mut past = self.0.lock();
        if past.capacity() <= KEPT {
            // Once, and all of it: places are given under a lock that should not wait for memory.
            past.reserve_exact(KEPT + 1);
        }
        match past.back_mut() {
            Some((at, last)) if *at >= now_ms => *last = usage,
            _ => past.push_back((now_ms, usage)),
        }
        let old = now_ms.saturating_sub(KEPT_MS);
        while past.len() > KEPT || past.get(1).is_some_and(|(at, _)| *at < old) {
            past.pop_front();
        }
    }

    /// What they added up to at `then_ms`; of before the first change that is remembered, nothing
    /// is known but that.
    ///
    /// ```
    /// use router_core::fleet::{LeaseHistory, Usage};
    ///
    /// let own = LeaseHistory::default();
    /// let one = Usage { requests: 1, ..Usage::default() };
    /// own.record(1_000, one);
    /// own.record(1_200, Usage::default());
    /// assert_eq!(own.at(1_100), one);
    /// assert_eq!((own.at(900), own.at(1_200)), (Usage::default(), Usage::default()));
    /// ```
    pub fn at(&self, then_ms: u64) -> Usage {
        let past = self.0.lock();
        let after = past.partition_point(|(at, _)| *at <= then_ms);
        match after.checked_sub(1) {
            Some(last) => past[last].1,
            // Forgotten: the oldest that is known is the nearest. One change alone is the first.
            None if past.len() >= KEPT => past.front().map(|(_, usage)| *usage).unwrap_or_default(),
            None => Usage::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_short_and_bounded() {
        let own = LeaseHistory::default();
        for ms in 0..10_000 {
            own.record(ms, Usage { requests: ms, ..Usage::default() });
        }
        assert!(own.0.lock().len() <= KEPT);
        assert_eq!(own.at(9_990).requests, 9_990);
        assert_eq!(own.at(20_000).requests, 9_999);
        assert_eq!(own.at(5).requests, 10_000 - KEPT as u64, "the nearest that is known");
    }

    #[test]
    fn the_last_of_a_millisecond_counts() {
        let own = LeaseHistory::default();
        own.record(5, Usage { requests: 1, ..Usage::default() });
        own.record(5, Usage { requests: 2, ..Usage::default() });
        assert_eq!(own.at(5).requests, 2);
    }
}
