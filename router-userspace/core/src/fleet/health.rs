//! [`Health`]: whether a worker answers, learned from requests and probes.
//!
//! One word, so that a reader never sees half of a change. Time is an argument, in
//! milliseconds of the caller's monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What is thought of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nobody has spoken with it yet.
    Unknown,
    Up,
    /// Answers probes and fails requests: the breaker is open.
    Failing,
    /// Cannot be reached, or does not answer.
    Down,
}

/// Server errors in a row that open the breaker.
pub const ERRORS_TO_OPEN: u64 = 5;
/// Failed probes in a row that take a worker out.
pub const PROBES_TO_OPEN: u64 = 2;
/// How long an opened breaker ignores good probes: the engine answers probes and fails requests.
pub const OPEN_MS: u64 = 2_000;

const STATE: u64 = 0b11;
const UP: u64 = 1;
const DOWN: u64 = 2;
const FAILING: u64 = 3;
const COUNT_SHIFT: u32 = 2;
const COUNT: u64 = 0xff;
const UNTIL_SHIFT: u32 = 10;

/// In place of the failures in a row of a worker that is down: it leaves probes unanswered.
const SILENT: u64 = 1;

/// The state, the failures in a row, and until when good probes are ignored, in one word.
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

    /// Whether the worker leaves probes unanswered: frozen, or its host is gone. One that refuses
    /// connections or says that it is not ready may well finish what it holds, as engines do that
    /// shut down.
    pub fn is_silent(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & STATE == DOWN && (word >> COUNT_SHIFT) & COUNT == SILENT
    }

    /// A request was answered, whatever the client's share in it: the worker works.
    pub fn answered(&self) {
        // A plain read first: this runs once a request, and a shared word should stay shared.
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

    /// The connection was refused, reset or never made. Out at once; the next good probe
    /// brings it back.
    pub fn unreachable(&self) {
        self.update(|state, count, _| match state {
            DOWN => (DOWN, count, 0),
            _ => (DOWN, 0, 0),
        });
    }

    /// The worker itself answered with a server error.
    pub fn errored(&self, now_ms: u64) {
        self.update(|state, count, until| match state {
            DOWN | FAILING => (state, count, until),
            _ if count + 1 >= ERRORS_TO_OPEN => (FAILING, 0, now_ms + OPEN_MS),
            state => (state, count + 1, until),
        });
    }

    /// A probe was answered well.
    pub fn probe_passed(&self, now_ms: u64) {
        self.update(|state, count, until| match state {
            FAILING if now_ms < until => (FAILING, count, until),
            UP => (UP, count, 0),
            _ => (UP, 0, 0),
        });
    }

    /// The worker itself says that it is not ready: out at once, a second word is not needed.
    pub fn not_ready(&self) {
        self.unreachable();
    }

    /// The connection of a probe broke.
    pub fn probe_failed(&self) {
        self.missed(0);
    }

    /// A probe was not answered in time.
    pub fn probe_lost(&self) {
        self.missed(SILENT);
    }

    fn missed(&self, how: u64) {
        self.update(|state, count, until| match state {
            UP if count + 1 < PROBES_TO_OPEN => (UP, count + 1, until),
            _ => (DOWN, how, 0),
        });
    }

    fn update(&self, f: impl Fn(u64, u64, u64) -> (u64, u64, u64)) {
        let next = |word: u64| {
            let (state, count, until) =
                f(word & STATE, (word >> COUNT_SHIFT) & COUNT, word >> UNTIL_SHIFT);
            Some(pack(state, count, until))
        };
        // The closure never declines, so the update cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_takes_a_worker_out_until_a_probe_passes() {
        let health = Health::default();
        assert_eq!(health.verdict(), Verdict::Unknown);
        health.probe_passed(1);
        assert_eq!(health.verdict(), Verdict::Up);
        health.unreachable();
        assert_eq!(health.verdict(), Verdict::Down);
        health.answered();
        assert_eq!(health.verdict(), Verdict::Down, "an old answer says nothing of the present");
        health.probe_passed(2);
        assert_eq!(health.verdict(), Verdict::Up);
    }

    #[test]
    fn errors_in_a_row_open_the_breaker_for_a_while_and_a_good_answer_forgets_them() {
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
    fn who_refuses_or_is_not_ready_is_not_silent() {
        let health = Health::default();
        health.unreachable();
        assert!(!health.is_silent());
        health.probe_lost();
        assert!(health.is_silent());
        health.unreachable();
        health.answered();
        assert!(health.is_silent(), "only a probe takes it back");
        health.probe_failed();
        assert!(!health.is_silent());
        health.probe_passed(0);
        health.probe_lost();
        assert!(!health.is_silent(), "one lost probe says nothing");
        health.probe_lost();
        assert!(health.is_silent());
    }

    #[test]
    fn a_worker_that_says_it_is_not_ready_is_believed_at_once() {
        let health = Health::default();
        health.probe_passed(0);
        health.not_ready();
        assert_eq!(health.verdict(), Verdict::Down);
        assert!(!health.is_silent());
    }

    #[test]
    fn one_lost_probe_is_no_verdict() {
        let health = Health::default();
        health.probe_passed(0);
        health.probe_failed();
        assert_eq!(health.verdict(), Verdict::Up);
        health.probe_failed();
        assert_eq!(health.verdict(), Verdict::Down);
    }
}
