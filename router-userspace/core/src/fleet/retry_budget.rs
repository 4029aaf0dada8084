//! [`RetryBudget`]: bounds the retries of a pool, so that they do not multiply an overload.
//!
//! The rule is linkerd's: a share of the requests of the last seconds, and a few retries a second in
//! any case, so that a pool with little traffic can retry too.

use parking_lot::Mutex;

/// Seconds over which requests and retries are counted.
const WINDOW_SECONDS: usize = 10;
/// Maximum share of retries, in percent of the requests of the window.
pub const RETRY_PERCENT: u64 = 20;
/// Retries a second that are allowed in any case.
pub const MIN_RETRIES_PER_SECOND: u64 = 10;

/// Counts the requests and retries of a pool.
#[derive(Debug, Default)]
pub struct RetryBudget(Mutex<RetryWindow>);

#[derive(Debug, Default)]
struct RetryWindow {
    second: u64,
    requests: [u64; WINDOW_SECONDS],
    retries: [u64; WINDOW_SECONDS],
}

impl RetryWindow {
    /// Clears the seconds that have left the window. Returns the slot of the current second.
    fn advance(&mut self, now_ms: u64) -> usize {
        let second = now_ms / 1000;
        let passed = second.saturating_sub(self.second).min(WINDOW_SECONDS as u64);
        for back in 0..passed {
            let at = ((second - back) % WINDOW_SECONDS as u64) as usize;
            (self.requests[at], self.retries[at]) = (0, 0);
        }
        self.second = self.second.max(second);
        (self.second % WINDOW_SECONDS as u64) as usize
    }
}

impl RetryBudget {
    /// Counts a request of a client.
    pub fn on_request(&self, now_ms: u64) {
        let mut window = self.0.lock();
        let at = window.advance(now_ms);
        window.requests[at] += 1;
    }

    /// Counts a retry and returns true, or returns false if the budget is used up.
    ///
    /// ```
    /// use router_core::fleet::RetryBudget;
    ///
    /// let budget = RetryBudget::default();
    /// let allowed = (0..1000).filter(|_| budget.try_retry(0)).count();
    /// assert_eq!(allowed, 100, "ten a second, over ten seconds");
    /// ```
    pub fn try_retry(&self, now_ms: u64) -> bool {
        let mut window = self.0.lock();
        let at = window.advance(now_ms);
        let requests: u64 = window.requests.iter().sum();
        let retries: u64 = window.retries.iter().sum();
        let minimum = MIN_RETRIES_PER_SECOND * WINDOW_SECONDS as u64;
        let allowed = retries < minimum + requests * RETRY_PERCENT / 100;
        if allowed {
            window.retries[at] += 1;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_of_ten_seconds_may_be_retried() {
        let budget = RetryBudget::default();
        for n in 0..1000 {
            budget.on_request(n * 9);
        }
        assert_eq!((0..1000).filter(|_| budget.try_retry(9_000)).count(), 100 + 200);
        assert!(!budget.try_retry(9_999));
        // The window has passed: only the minimum is left.
        assert_eq!((0..1000).filter(|_| budget.try_retry(60_000)).count(), 100);
        assert!(!budget.try_retry(59_000), "a clock that goes back allows nothing");
    }
}
