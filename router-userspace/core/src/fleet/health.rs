//! [`Health`]: whether a worker answers, observed by requests and probes.
//!
//! The state is one atomic word, so that a reader never sees a partial update. Time is an argument, in
//! milliseconds of the caller's monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// The health of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// No request or probe has been sent to it yet.
    Unknown,
    Up,
    /// It answers probes and fails requests: the circuit breaker is open.
    Failing,
    /// It cannot be reached or does not answer.
    Down,
}

/// Consecutive server errors that open the circuit breaker.
pub const ERRORS_TO_OPEN: u64 = 5;
/// Consecutive failed probes after which a worker is down.
pub const PROBES_TO_OPEN: u64 = 2;
/// Time for which an open breaker ignores successful probes, which succeed while requests fail.
pub const OPEN_MS: u64 = 2_000;

const STATE: u64 = 0b11;
const UP: u64 = 1;
const DOWN: u64 = 2;
const FAILING: u64 = 3;
const COUNT_SHIFT: u32 = 2;
const COUNT: u64 = 0xff;
const UNTIL_SHIFT: u32 = 10;

/// Value of the failure count of a worker that is down because it leaves probes unanswered.
const SILENT: u64 = 1;

/// The state, the consecutive failures, and the time until which good probes are ignored, in one word.
#[derive(Debug, Default)]
pub struct Health(AtomicU64);

fn pack(state: u64, count: u64, until_ms: u64) -> u64 {
    state | (count.min(COUNT) << COUNT_SHIFT) | (until_ms << UNTIL_SHIFT)
}

impl Health {
    pub fn verdict(&self) -> Verdict {
        match self.0.load(Ordering::Relaxed) & STATE {
            UP => Verdict::Up,
            FAILING => Verdict::Failing,
            DOWN => Verdict::Down,
            _ => Verdict::Unknown,
        }
    }

    /// Whether the worker leaves probes unanswered, because it is frozen or its host is gone. A worker
    /// that refuses connections or reports that it is not ready is not silent: an engine that shuts
    /// down still finishes its running requests.
    pub fn is_silent(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & STATE == DOWN && (word >> COUNT_SHIFT) & COUNT == SILENT
    }

    /// Records that the worker answered a request, also with a client error.
    pub fn answered(&self) {
        // Read first: this runs once per request, and a write would move the cache line.
        let word = self.0.load(Ordering::Relaxed);
        if word & STATE == UP && (word >> COUNT_SHIFT) & COUNT == 0 {
            return;
        }
        self.update(|state, count, until| match state {
            DOWN => (DOWN, count, until),
            FAILING => (FAILING, 0, until),
            _ => (UP, 0, 0),
        });
    }

    /// Records that the connection was refused, reset or never established. The worker is down until
    /// the next successful probe.
    pub fn unreachable(&self) {
        self.update(|state, count, _| match state {
            DOWN => (DOWN, count, 0),
            _ => (DOWN, 0, 0),
        });
    }

    /// Records that the worker answered with a server error.
    pub fn errored(&self, now_ms: u64) {
        self.update(|state, count, until| match state {
            DOWN | FAILING => (state, count, until),
            _ if count + 1 >= ERRORS_TO_OPEN => (FAILING, 0, now_ms + OPEN_MS),
            state => (state, count + 1, until),
        });
    }

    /// Records a successful probe.
    pub fn probe_passed(&self, now_ms: u64) {
        self.update(|state, count, until| match state {
            FAILING if now_ms < until => (FAILING, count, until),
            UP => (UP, count, 0),
            _ => (UP, 0, 0),
        });
    }

    /// Records that the worker reports not to be ready. It is down at once, without a second probe.
    pub fn not_ready(&self) {
        self.unreachable();
    }

    /// Records that the connection of a probe failed.
    pub fn probe_failed(&self) {
        self.probe_missed(0);
    }

    /// Records that a probe was not answered in time.
    pub fn probe_timed_out(&self) {
        self.probe_missed(SILENT);
    }

    fn probe_missed(&self, kind: u64) {
        self.update(|state, count, until| match state {
            UP if count + 1 < PROBES_TO_OPEN => (UP, count + 1, until),
            _ => (DOWN, kind, 0),
        });
    }

    fn update(&self, f: impl Fn(u64, u64, u64) -> (u64, u64, u64)) {
        let next = |word: u64| {
            let (state, count, until) =
                f(word & STATE, (word >> COUNT_SHIFT) & COUNT, word >> UNTIL_SHIFT);
            Some(pack(state, count, until))
        };
        // `next` never returns `None`, so the update cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_takes_a_worker_down_until_a_probe_passes() {
        let health = Health::default();
        assert_eq!(health.verdict(), Verdict::Unknown);
        health.probe_passed(1);
        assert_eq!(health.verdict(), Verdict::Up);
        health.unreachable();
        assert_eq!(health.verdict(), Verdict::Down);
        health.answered();
        assert_eq!(health.verdict(), Verdict::Down, "a late answer does not bring it back");
        health.probe_passed(2);
        assert_eq!(health.verdict(), Verdict::Up);
    }

    #[test]
    fn consecutive_errors_open_the_breaker_and_a_good_answer_resets_them() {
        let health = Health::default();
        health.probe_passed(0);
        for _ in 0..ERRORS_TO_OPEN - 1 {
            health.errored(10);
        }
        assert_eq!(health.verdict(), Verdict::Up);
        health.answered();
        health.errored(10);
        assert_eq!(health.verdict(), Verdict::Up);
        for _ in 0..ERRORS_TO_OPEN {
            health.errored(10);
        }
        assert_eq!(health.verdict(), Verdict::Failing);
        health.probe_passed(10 + OPEN_MS - 1);
        assert_eq!(health.verdict(), Verdict::Failing);
        health.probe_passed(10 + OPEN_MS);
        assert_eq!(health.verdict(), Verdict::Up);
    }

    #[test]
    fn only_a_timed_out_probe_makes_a_worker_silent() {
        let health = Health::default();
        health.unreachable();
        assert!(!health.is_silent());
        health.probe_timed_out();
        assert!(health.is_silent());
        health.unreachable();
        health.answered();
        assert!(health.is_silent(), "only a probe changes it");
        health.probe_failed();
        assert!(!health.is_silent());
        health.probe_passed(0);
        health.probe_timed_out();
        assert!(!health.is_silent(), "one timeout is not enough");
        health.probe_timed_out();
        assert!(health.is_silent());
    }

    #[test]
    fn a_worker_that_reports_not_ready_is_down_at_once() {
        let health = Health::default();
        health.probe_passed(0);
        health.not_ready();
        assert_eq!(health.verdict(), Verdict::Down);
        assert!(!health.is_silent());
    }

    #[test]
    fn one_failed_probe_does_not_take_a_worker_down() {
        let health = Health::default();
        health.probe_passed(0);
        health.probe_failed();
        assert_eq!(health.verdict(), Verdict::Up);
        health.probe_failed();
        assert_eq!(health.verdict(), Verdict::Down);
    }
}
