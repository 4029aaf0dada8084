//! [`Health`]: whether a worker answers, observed by requests and probes.
//!
//! The state is one atomic word, so that a reader never sees a partial update. Time is an argument, in
//! milliseconds of the caller's monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// The health of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No request or probe has been sent to it yet.
    Unknown,
    Up,
    /// It was failing, and its time out has passed: one request at a time tries it.
    HalfOpen,
    /// It answers probes and fails requests: the circuit breaker is open.
    Failing,
    /// It cannot be reached or does not answer.
    Down,
}

impl Verdict {
    /// Whether the worker gets requests while others are up too.
    pub fn serves(self) -> bool {
        matches!(self, Verdict::Up | Verdict::HalfOpen)
    }
}

/// Consecutive server errors that open the circuit breaker.
pub const ERRORS_TO_OPEN: u64 = 5;
/// Failed probes, without a passed probe or a good answer between them, after which a worker that was up
/// is down.
pub const PROBES_TO_OPEN: u64 = 2;
/// Time for which an open breaker ignores successful probes, which succeed while requests fail. It
/// doubles each time the breaker opens again from half-open or within [`RELAPSE_MS`] of the last time out.
pub const OPEN_MS: u64 = 2_000;
/// Maximum time for which a breaker is open.
pub const MAX_OPEN_MS: u64 = 60_000;
/// A worker whose breaker opens again within this time after its time out stays out for twice as long.
pub const RELAPSE_MS: u64 = 60_000;
/// Time for which a worker that refused a request as too many counts as full.
pub const REFUSED_MS: u64 = 1_000;

const STATE: u64 = 0b111;
const UP: u64 = 1;
const DOWN: u64 = 2;
const FAILING: u64 = 3;
const HALF_OPEN: u64 = 4;
const LEVEL_SHIFT: u32 = 3;
/// Mask and maximum of the level. The time out reaches its maximum before.
const LEVEL: u64 = 0b111;
const COUNT_SHIFT: u32 = 6;
const COUNT: u64 = 0xff;
const MISSED_SHIFT: u32 = 14;
/// Mask and maximum of the missed probes. A worker is down at [`PROBES_TO_OPEN`].
const MISSED: u64 = 0b11;
const UNTIL_SHIFT: u32 = 16;

/// Values of the failure count of a worker that is down: why it is down.
///
/// It refuses connections, or reports that it is not ready.
const AWAY: u64 = 0;
/// It leaves probes unanswered.
const SILENT: u64 = 1;
/// It answers, and its bootstrap server cannot be reached.
const UNREGISTERED: u64 = 2;

/// A change of a worker's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthChange {
    pub before: Verdict,
    pub after: Verdict,
}

/// Whether a worker answers. Methods that record an observation return the change of the verdict, if
/// there is one.
#[derive(Debug, Default)]
pub struct Health {
    /// The state, the consecutive failures of requests and of probes, how often the breaker has opened,
    /// and the time until which good probes are ignored.
    word: AtomicU64,
    /// When the worker last refused a request as too many; 0 if it has answered one since.
    refused_ms: AtomicU64,
    /// When the verdict changed last.
    changed_ms: AtomicU64,
}

/// The fields of the word.
#[derive(Clone, Copy)]
struct HealthFields {
    state: u64,
    /// The consecutive server errors, or why the worker is down.
    count: u64,
    /// The probes that a worker that is up has missed since the last sign of life.
    missed: u64,
    /// How often the breaker has opened without [`RELAPSE_MS`] of good health between.
    level: u64,
    /// When the last time out ends or has ended.
    until_ms: u64,
}

impl HealthFields {
    const WELL: HealthFields =
        HealthFields { state: UP, count: 0, missed: 0, level: 0, until_ms: 0 };

    fn of(word: u64) -> HealthFields {
        HealthFields {
            state: word & STATE,
            count: (word >> COUNT_SHIFT) & COUNT,
            missed: (word >> MISSED_SHIFT) & MISSED,
            level: (word >> LEVEL_SHIFT) & LEVEL,
            until_ms: word >> UNTIL_SHIFT,
        }
    }

    fn pack(self) -> u64 {
        self.state
            | (self.level << LEVEL_SHIFT)
            | (self.count.min(COUNT) << COUNT_SHIFT)
            | (self.missed.min(MISSED) << MISSED_SHIFT)
            | (self.until_ms << UNTIL_SHIFT)
    }

    fn verdict(self) -> Verdict {
        match self.state {
            UP => Verdict::Up,
            HALF_OPEN => Verdict::HalfOpen,
            FAILING => Verdict::Failing,
            DOWN => Verdict::Down,
            _ => Verdict::Unknown,
        }
    }

    fn opened(self, now_ms: u64) -> HealthFields {
        let is_well = self.state == UP && now_ms >= self.until_ms.saturating_add(RELAPSE_MS);
        let level = if is_well { 0 } else { self.level };
        let open_ms = (OPEN_MS << level).min(MAX_OPEN_MS);
        let level = (level + 1).min(LEVEL);
        HealthFields { state: FAILING, count: 0, missed: 0, level, until_ms: now_ms + open_ms }
    }

    /// Down for `kind`, with the time out of the breaker as it is.
    fn down(self, kind: u64) -> HealthFields {
        HealthFields { state: DOWN, count: kind, missed: 0, ..self }
    }
}

impl Health {
    pub fn verdict(&self) -> Verdict {
        HealthFields::of(self.word.load(Ordering::Relaxed)).verdict()
    }

    /// Stores the time of a change of the verdict, and returns for how long the verdict before it
    /// lasted. That of the first verdict is counted from 0 of the clock.
    pub fn mark_changed(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.changed_ms.swap(now_ms, Ordering::Relaxed))
    }

    /// Whether the worker leaves probes unanswered, because it is frozen or its host is gone. A worker
    /// that refuses connections or reports that it is not ready is not silent: an engine that shuts
    /// down still finishes its running requests.
    pub fn is_silent(&self) -> bool {
        self.is_down_for(SILENT)
    }

    /// Whether the worker answers and its bootstrap server cannot be reached. A decode cannot get a KV
    /// cache from this prefill: it would wait for its whole timeout.
    pub fn is_unregistered(&self) -> bool {
        self.is_down_for(UNREGISTERED)
    }

    fn is_down_for(&self, kind: u64) -> bool {
        let fields = HealthFields::of(self.word.load(Ordering::Relaxed));
        fields.state == DOWN && fields.count == kind
    }

    /// Records that the worker answered a request.
    pub fn answered(&self) -> Option<HealthChange> {
        // Read first: this runs once per request, and a write would move the cache line.
        if self.refused_ms.load(Ordering::Relaxed) != 0 {
            self.refused_ms.store(0, Ordering::Relaxed);
        }
        let fields = HealthFields::of(self.word.load(Ordering::Relaxed));
        if (fields.state, fields.count, fields.missed) == (UP, 0, 0) {
            return None;
        }
        self.update(|fields| match fields.state {
            DOWN => fields,
            FAILING => HealthFields { count: 0, ..fields },
            _ => HealthFields { state: UP, count: 0, missed: 0, ..fields },
        })
    }

    /// Records that the worker refused a request because it has too many. That is not a sign of bad
    /// health.
    pub fn refused(&self, now_ms: u64) {
        self.refused_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// Whether the worker has refused a request as too many within [`REFUSED_MS`] and answered none
    /// since.
    pub fn refused_recently(&self, now_ms: u64) -> bool {
        let refused_ms = self.refused_ms.load(Ordering::Relaxed);
        refused_ms != 0 && now_ms.saturating_sub(refused_ms) < REFUSED_MS
    }

    /// Records that a request's connection was refused, reset or never established. The worker is down
    /// until the next successful probe. Why it is down stays as a probe found it.
    pub fn unreachable(&self) -> Option<HealthChange> {
        self.update(|fields| {
            let count = if fields.state == DOWN { fields.count } else { AWAY };
            HealthFields { level: 0, until_ms: 0, ..fields.down(count) }
        })
    }

    /// Records that the worker answers and its bootstrap server refuses the connection. The worker is
    /// down at once, without a second probe.
    pub fn bootstrap_refused(&self) -> Option<HealthChange> {
        self.update(|fields| fields.down(UNREGISTERED))
    }

    /// Records that the worker answers and its bootstrap server did not in time.
    pub fn bootstrap_timed_out(&self) -> Option<HealthChange> {
        self.probe_missed(UNREGISTERED)
    }

    /// Opens the breaker at once: for a worker that no probe looks at, or one that fails more often than
    /// its peers.
    pub fn ejected(&self, now_ms: u64) -> Option<HealthChange> {
        self.update(|fields| match fields.state {
            DOWN | FAILING => fields,
            _ => fields.opened(now_ms),
        })
    }

    /// Records that the worker answered with a server error.
    pub fn errored(&self, now_ms: u64) -> Option<HealthChange> {
        self.update(|fields| match fields.state {
            DOWN | FAILING => fields,
            HALF_OPEN => fields.opened(now_ms),
            _ if fields.count + 1 >= ERRORS_TO_OPEN => fields.opened(now_ms),
            _ => HealthFields { count: fields.count + 1, ..fields },
        })
    }

    /// Records a successful probe. After the time out of an open breaker, one request tries the worker.
    pub fn probe_passed(&self, now_ms: u64) -> Option<HealthChange> {
        self.update(|fields| match fields.state {
            // The time outs of long ago are forgotten.
            UP if now_ms >= fields.until_ms.saturating_add(RELAPSE_MS) => {
                HealthFields { level: 0, until_ms: 0, missed: 0, ..fields }
            }
            UP | HALF_OPEN => HealthFields { missed: 0, ..fields },
            FAILING | DOWN if fields.level > 0 && now_ms < fields.until_ms => {
                HealthFields { state: FAILING, count: 0, ..fields }
            }
            FAILING | DOWN if fields.level > 0 => {
                HealthFields { state: HALF_OPEN, count: 0, until_ms: now_ms, ..fields }
            }
            _ => HealthFields::WELL,
        })
    }

    /// Records that a probe was refused, or answered that the worker is not ready. The worker is down at
    /// once, without a second probe, and neither silent nor unregistered any more.
    pub fn not_ready(&self) -> Option<HealthChange> {
        self.update(|_| HealthFields::WELL.down(AWAY))
    }

    /// Records that the connection of a probe failed.
    pub fn probe_failed(&self) -> Option<HealthChange> {
        self.probe_missed(AWAY)
    }

    /// Records that a probe was not answered in time.
    pub fn probe_timed_out(&self) -> Option<HealthChange> {
        self.probe_missed(SILENT)
    }

    fn probe_missed(&self, kind: u64) -> Option<HealthChange> {
        self.update(|fields| match fields.state {
            UP if fields.missed + 1 < PROBES_TO_OPEN => {
                HealthFields { missed: fields.missed + 1, ..fields }
            }
            _ => fields.down(kind),
        })
    }

    /// Returns the change of the verdict. Of concurrent updates each change is returned once.
    fn update(&self, f: impl Fn(HealthFields) -> HealthFields) -> Option<HealthChange> {
        let next = |word: u64| Some(f(HealthFields::of(word)).pack());
        let before = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        // `next` never returns `None`, so the update cannot fail.
        let before = HealthFields::of(before.unwrap_or_else(|word| word));
        let (before, after) = (before.verdict(), f(before).verdict());
        (before != after).then_some(HealthChange { before, after })
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
        assert_eq!(health.verdict(), Verdict::HalfOpen);
        health.answered();
        assert_eq!(health.verdict(), Verdict::Up);
    }

    #[test]
    fn the_time_out_doubles_up_to_a_minute_until_requests_succeed_for_a_while() {
        let health = Health::default();
        let mut now = 0;
        health.ejected(now);
        for seconds in [2, 4, 8, 16, 32, 60, 60, 60] {
            now += seconds * 1000;
            health.probe_passed(now - 1);
            assert_eq!(health.verdict(), Verdict::Failing, "{seconds}");
            health.probe_passed(now);
            assert_eq!(health.verdict(), Verdict::HalfOpen, "{seconds}");
            health.errored(now);
        }
        now += MAX_OPEN_MS;
        health.probe_passed(now);
        health.answered();
        assert_eq!(health.verdict(), Verdict::Up);
        now += RELAPSE_MS - 1;
        health.ejected(now);
        health.probe_passed(now + MAX_OPEN_MS - 1);
        assert_eq!(health.verdict(), Verdict::Failing, "one success does not reset the time");
        now += MAX_OPEN_MS;
        health.probe_passed(now);
        health.answered();
        now += RELAPSE_MS;
        health.ejected(now);
        health.probe_passed(now + OPEN_MS);
        assert_eq!(health.verdict(), Verdict::HalfOpen, "a minute of good health does");
    }

    #[test]
    fn lost_probes_do_not_shorten_the_time_out_and_a_restart_ends_it() {
        let health = Health::default();
        health.ejected(0);
        health.probe_timed_out();
        assert_eq!(health.verdict(), Verdict::Down);
        health.probe_passed(OPEN_MS - 1);
        assert_eq!(health.verdict(), Verdict::Failing);
        health.unreachable();
        health.probe_passed(OPEN_MS - 1);
        assert_eq!(health.verdict(), Verdict::Up, "the process is a new one");
    }

    #[test]
    fn a_refusal_counts_for_a_second_or_until_the_next_answer() {
        let health = Health::default();
        assert!(!health.refused_recently(0));
        health.refused(0);
        assert!(health.refused_recently(REFUSED_MS));
        assert!(!health.refused_recently(REFUSED_MS + 1));
        health.refused(5_000);
        health.answered();
        assert!(!health.refused_recently(5_000));
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
    fn lost_probes_long_after_a_time_out_do_not_bring_it_back() {
        let health = Health::default();
        health.ejected(0);
        health.probe_passed(OPEN_MS);
        health.answered();
        health.probe_passed(3_600_000);
        health.probe_timed_out();
        health.probe_timed_out();
        assert_eq!(health.verdict(), Verdict::Down);
        health.probe_passed(3_603_000);
        assert_eq!(health.verdict(), Verdict::Up);
    }

    #[test]
    fn a_worker_that_is_not_ready_is_down_at_once_and_neither_silent_nor_unregistered() {
        let health = Health::default();
        health.probe_passed(0);
        health.not_ready();
        assert!(health.verdict() == Verdict::Down && !health.is_silent());
        health.probe_timed_out();
        assert!(health.is_silent());
        health.not_ready();
        assert!(!health.is_silent(), "it was frozen and has thawed");
        health.bootstrap_refused();
        assert!(health.is_unregistered());
        health.not_ready();
        assert!(!health.is_unregistered(), "its process is gone");
        assert_eq!(health.verdict(), Verdict::Down);
    }

    #[test]
    fn each_change_is_returned_once() {
        let health = Health::default();
        let change = |before, after| Some(HealthChange { before, after });
        assert_eq!(health.answered(), change(Verdict::Unknown, Verdict::Up));
        assert_eq!(health.answered(), None);
        assert_eq!(health.unreachable(), change(Verdict::Up, Verdict::Down));
        assert_eq!((health.unreachable(), health.probe_timed_out()), (None, None));
        assert_eq!(health.probe_passed(5), change(Verdict::Down, Verdict::Up));
        assert_eq!((health.mark_changed(5), health.mark_changed(9)), (5, 4));
    }

    #[test]
    fn a_refused_bootstrap_server_counts_until_a_probe_passes() {
        let health = Health::default();
        health.probe_passed(0);
        health.bootstrap_timed_out();
        assert!(!health.is_unregistered(), "one timeout is not enough");
        health.bootstrap_refused();
        health.answered();
        health.unreachable();
        assert!(health.is_unregistered() && !health.is_silent());
        health.probe_passed(0);
        assert!(!health.is_unregistered());
    }

    #[test]
    fn lost_probes_count_in_a_row_and_apart_from_server_errors() {
        let health = Health::default();
        for now_ms in 0..3 {
            health.probe_passed(now_ms);
            health.probe_failed();
        }
        assert_eq!(health.verdict(), Verdict::Up, "a probe has passed between them");
        health.probe_failed();
        assert_eq!(health.verdict(), Verdict::Down);
        health.probe_passed(3);
        health.errored(3);
        health.probe_failed();
        assert_eq!(health.verdict(), Verdict::Up, "one of each");
        for _ in 2..ERRORS_TO_OPEN {
            health.errored(4);
        }
        assert_eq!(health.verdict(), Verdict::Up, "the lost probe is no server error");
        health.errored(4);
        assert_eq!(health.verdict(), Verdict::Failing);
    }
}
