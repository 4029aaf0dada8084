//! [`RecentRequests`]: the last requests of pools that have ended, in memory.
//!
//! Slow and failed ones are kept in rings of their own, so that many fast ones do not push them out.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::summary::RequestSummary;
use crate::config::RecentFlags;

/// Bytes for each request that may be kept. A usual one has about two thirds.
const BYTES_PER_REQUEST: usize = 1536;
/// The rings of slow and of failed requests have this share of `--requests-kept`.
const SHARE: usize = 4;
/// Number of requests that are copied while the lock is held.
const COPIED_AT_ONCE: usize = 64;

/// The last requests, all in one ring, and the slow and the failed ones in another each.
#[derive(Debug)]
pub(crate) struct RecentRequests {
    slow_from_ms: f64,
    is_off: bool,
    next: AtomicU64,
    all: Ring,
    slow: Ring,
    failed: Ring,
}

impl RecentRequests {
    /// Keeps up to `--requests-kept` requests, and up to a quarter of that of the slow and of the failed ones.
    pub(crate) fn new(flags: &RecentFlags) -> RecentRequests {
        let count = flags.requests_kept as usize;
        let share = count.div_ceil(SHARE);
        RecentRequests {
            slow_from_ms: flags.slow_request.as_secs_f64() * 1e3,
            is_off: count == 0,
            next: AtomicU64::new(0),
            all: Ring::new(count),
            slow: Ring::new(share),
            failed: Ring::new(share),
        }
    }

    /// Whether no request is kept.
    pub(crate) fn is_off(&self) -> bool {
        self.is_off
    }

    /// Keeps a request that has ended, and returns it.
    pub(crate) fn keep(&self, mut request: RequestSummary) -> Arc<RequestSummary> {
        request.number = self.next.fetch_add(1, Ordering::Relaxed);
        let request = Arc::new(request);
        if self.is_off {
            return request;
        }
        if request.is_failed() {
            self.failed.push(Arc::clone(&request));
        }
        if request.waited_ms() >= self.slow_from_ms {
            self.slow.push(Arc::clone(&request));
        }
        self.all.push(Arc::clone(&request));
        request
    }

    /// From when on every request that ended is kept, in milliseconds since 1970: before it, some slow and
    /// failed ones are. `None` while none was pushed out, or all are.
    pub(crate) fn complete_since_ms(&self) -> Option<f64> {
        let kept = self.all.kept.lock();
        kept.requests.front().filter(|oldest| oldest.number > 0).map(|oldest| oldest.ended_ms())
    }

    /// Every kept request once, the last first.
    pub(crate) fn latest_first(&self) -> Vec<Arc<RequestSummary>> {
        let mut found: Vec<Arc<RequestSummary>> = Vec::new();
        for ring in [&self.all, &self.slow, &self.failed] {
            ring.copy_to(&mut found);
        }
        let mut seen = HashSet::with_capacity(found.len());
        found.retain(|request| seen.insert(request.number));
        found.sort_unstable_by_key(|request| std::cmp::Reverse(request.number));
        found
    }
}

/// A queue of the last requests, bounded in number and in bytes.
#[derive(Debug)]
struct Ring {
    max_count: usize,
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    requests: VecDeque<Arc<RequestSummary>>,
    bytes: usize,
    /// Number of requests that were pushed out, which is the number of the first in the ring.
    popped: u64,
}

impl Ring {
    fn new(max_count: usize) -> Ring {
        let max_bytes = max_count.saturating_mul(BYTES_PER_REQUEST);
        Ring { max_count, max_bytes, kept: Mutex::default() }
    }

    fn push(&self, request: Arc<RequestSummary>) {
        let bytes = request.bytes();
        if bytes > self.max_bytes {
            return;
        }
        let mut excess = {
            let mut kept = self.kept.lock();
            kept.bytes += bytes;
            kept.requests.push_back(request);
            self.pop_excess(&mut kept)
        };
        // Each is freed after the lock is released.
        while excess.take().is_some() {
            excess = self.pop_excess(&mut self.kept.lock());
        }
    }

    fn pop_excess(&self, kept: &mut Kept) -> Option<Arc<RequestSummary>> {
        if kept.requests.len() <= self.max_count && kept.bytes <= self.max_bytes {
            return None;
        }
        let oldest = kept.requests.pop_front()?;
        kept.popped += 1;
        kept.bytes -= oldest.bytes();
        Some(oldest)
    }

    /// Copies all, with the lock for a few at a time: requests that end wait for it.
    fn copy_to(&self, found: &mut Vec<Arc<RequestSummary>>) {
        let (mut next, end) = {
            let kept = self.kept.lock();
            (kept.popped, kept.popped + kept.requests.len() as u64)
        };
        found.reserve(usize::try_from(end - next).unwrap_or(0) + COPIED_AT_ONCE);
        while next < end {
            next = self.copy_some(next, found);
        }
    }

    /// Copies a few requests from number `from` of the ring on. Returns the number of the next.
    fn copy_some(&self, from: u64, found: &mut Vec<Arc<RequestSummary>>) -> u64 {
        let kept = self.kept.lock();
        // What was pushed out meanwhile is gone.
        let from = from.max(kept.popped);
        let skipped = usize::try_from(from - kept.popped).unwrap_or(usize::MAX);
        let before = found.len();
        found.extend(kept.requests.iter().skip(skipped).take(COPIED_AT_ONCE).cloned());
        from + ((found.len() - before) as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::summary::tests::summary;
    use super::*;

    /// Requests of 100 ms are slow.
    fn keeping(requests_kept: u32) -> RecentRequests {
        let slow_request = Duration::from_millis(100);
        RecentRequests::new(&RecentFlags { requests_kept, slow_request })
    }

    fn ids(recent: &RecentRequests) -> Vec<String> {
        recent.latest_first().iter().map(|request| request.id.to_string()).collect()
    }

    #[test]
    fn the_oldest_requests_leave_first() {
        let recent = keeping(4);
        for number in 0..10 {
            recent.keep(summary(&number.to_string(), "ok", 1.0));
        }
        assert_eq!(ids(&recent), ["9", "8", "7", "6"]);
    }

    #[test]
    fn fast_requests_do_not_push_out_slow_and_failed_ones() {
        let recent = keeping(8);
        recent.keep(summary("slow", "ok", 100.0));
        recent.keep(summary("failed", "prefill_died", 1.0));
        recent.keep(summary("both", "prefill_died", 500.0));
        for number in 0..100 {
            recent.keep(summary(&number.to_string(), "ok", 99.0));
        }
        let kept = ids(&recent);
        assert_eq!(kept.len(), 8 + 3, "each is listed once: {kept:?}");
        assert_eq!(kept[8..], ["both", "failed", "slow"]);
        // Their own rings are bounded as well.
        for number in 0..10 {
            recent.keep(summary(&format!("late {number}"), "prefill_died", 100.0));
        }
        let kept = ids(&recent);
        assert!(!kept.contains(&"slow".to_owned()) && !kept.contains(&"failed".to_owned()));
        assert_eq!(recent.slow.kept.lock().requests.len(), 2);
        assert_eq!(recent.failed.kept.lock().requests.len(), 2);
    }

    #[test]
    fn requests_are_copied_a_few_at_a_time_while_others_end() {
        let recent = keeping(200);
        let keep = |number: u32| drop(recent.keep(summary(&number.to_string(), "ok", 1.0)));
        (0..200).for_each(keep);
        let mut found = Vec::new();
        assert_eq!(recent.all.copy_some(0, &mut found), COPIED_AT_ONCE as u64);
        assert_eq!(found.len(), COPIED_AT_ONCE);
        // 100 more push out the first 100.
        (200..300).for_each(keep);
        let next = recent.all.copy_some(COPIED_AT_ONCE as u64, &mut found);
        assert_eq!((next, &*found[COPIED_AT_ONCE].id), (100 + COPIED_AT_ONCE as u64, "100"));
        assert_eq!(recent.all.copy_some(1000, &mut found), 1001, "it always goes on");
        let ids = ids(&recent);
        assert_eq!((ids.len(), &*ids[0], &*ids[199]), (200, "299", "100"));
    }

    #[test]
    fn bytes_are_bounded_as_well() {
        let recent = keeping(16);
        let long = "x".repeat(5 * BYTES_PER_REQUEST);
        for number in 0..100 {
            recent.keep(summary(&format!("{number}{long}"), "ok", 1.0));
        }
        let (count, bytes) = {
            let kept = recent.all.kept.lock();
            (kept.requests.len(), kept.bytes)
        };
        assert!(count == 2 && bytes <= 16 * BYTES_PER_REQUEST, "{count} requests, {bytes} bytes");
        // What alone exceeds the limit would push out everything.
        recent.keep(summary(&long.repeat(4), "ok", 1.0));
        assert_eq!(recent.latest_first().len(), 2);
    }

    #[test]
    fn nothing_is_kept_where_that_is_off() {
        let recent = keeping(0);
        recent.keep(summary("failed", "prefill_died", 500.0));
        assert!(recent.is_off() && recent.latest_first().is_empty());
    }
}
