//! [`Outcomes`]: how a worker's recent requests ended, and whether it fails more often than its peers.
//!
//! A worker that refuses requests its peers serve is sick, whatever the status. Its rate is compared with
//! that of the other workers of its role, as Envoy's success-rate outlier detection does. Envoy's rule, a
//! number of standard deviations from the mean, cannot eject one of four hosts: the outlier itself widens
//! the deviation. Here a worker is compared with the others alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

/// Time over which outcomes are counted.
pub const OUTCOME_WINDOW_MS: u64 = SLOT_MS * SLOTS as u64;
/// Minimum number of failures in the window of a worker that is an outlier.
pub const MIN_FAILURES: u32 = 3;
/// Minimum number of requests of its peers in the window: fewer say nothing.
pub const MIN_PEER_REQUESTS: u32 = 10;

const SLOT_MS: u64 = 5_000;
const SLOTS: usize = 6;
/// Minimum difference between the failure rate of an outlier and that of its peers.
const MIN_EXCESS: f64 = 0.2;
/// Minimum distance from the expected number of failures, in standard deviations.
const MIN_DEVIATIONS: f64 = 3.0;
/// Weight of one request in the mean service time.
const SERVICE_TIME_WEIGHT: f64 = 0.125;

/// Kinds of requests whose outcomes are counted apart: an engine that fails to generate may tokenize well, and
/// many small successes would hide the failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// It generates.
    Generation,
    /// It is forwarded to one worker as it came.
    Forwarded,
}

/// Requests of the last [`OUTCOME_WINDOW_MS`] by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutcomeCounts {
    /// Answered with generated output, or with a success where a request was forwarded as it came.
    pub succeeded: u32,
    /// Server errors, timeouts, broken connections, and client errors to requests that a peer has served.
    pub failed: u32,
    /// Client errors of which it is not known yet whether the request is at fault.
    pub refused: u32,
    /// Failed KV transfers, which count at both workers of the pair.
    pub transfers_failed: u32,
}

impl OutcomeCounts {
    /// Returns the sums.
    pub fn plus(self, other: OutcomeCounts) -> OutcomeCounts {
        OutcomeCounts {
            succeeded: self.succeeded.saturating_add(other.succeeded),
            failed: self.failed.saturating_add(other.failed),
            refused: self.refused.saturating_add(other.refused),
            transfers_failed: self.transfers_failed.saturating_add(other.transfers_failed),
        }
    }

    /// Returns the outcomes with each failed transfer counted as a failure of the worker.
    pub fn with_transfers(self) -> OutcomeCounts {
        let failed = self.failed.saturating_add(self.transfers_failed);
        OutcomeCounts { failed, transfers_failed: 0, ..self }
    }

    /// Returns the requests whose outcome says something about the worker.
    pub fn judged(&self) -> u32 {
        self.succeeded.saturating_add(self.failed)
    }

    fn unserved(&self) -> u32 {
        self.failed.saturating_add(self.refused)
    }

    fn total(&self) -> u32 {
        self.judged().saturating_add(self.refused)
    }

    /// Whether a worker with these outcomes fails more often than its peers: at least [`MIN_FAILURES`], at
    /// a rate at least 20 percentage points above theirs, and at least 3 standard deviations above what is
    /// expected at their rate.
    ///
    /// ```
    /// use router_core::fleet::OutcomeCounts;
    ///
    /// let peers = OutcomeCounts { succeeded: 30, ..OutcomeCounts::default() };
    /// assert!(OutcomeCounts { failed: 3, ..OutcomeCounts::default() }.is_outlier(&peers));
    /// assert!(!OutcomeCounts { failed: 3, succeeded: 20, ..OutcomeCounts::default() }.is_outlier(&peers));
    /// ```
    pub fn is_outlier(&self, peers: &OutcomeCounts) -> bool {
        if self.failed < MIN_FAILURES || peers.judged() < MIN_PEER_REQUESTS {
            return false;
        }
        let (requests, failed) = (f64::from(self.judged()), f64::from(self.failed));
        let rate = smoothed(peers.failed, peers.judged());
        let expected = requests * rate;
        failed / requests >= rate + MIN_EXCESS
            && failed - expected >= MIN_DEVIATIONS * (expected * (1.0 - rate)).sqrt()
    }

    /// Whether the worker may be at fault when it refuses a request: at least twice, and clearly more often
    /// than its peers. Weaker than [`OutcomeCounts::is_outlier`]: a peer is asked before anything follows.
    pub fn is_suspect(&self, peers: &OutcomeCounts) -> bool {
        let expected = f64::from(self.total()) * smoothed(peers.unserved(), peers.total());
        self.unserved() >= 2 && f64::from(self.unserved()) > 2.0 * expected + 1.0
    }

    /// Whether the worker refuses and fails requests, and its peers at least as large a share of theirs.
    pub fn is_matched_by(&self, peers: &OutcomeCounts) -> bool {
        let (own, theirs) = (u64::from(self.unserved()), u64::from(peers.unserved()));
        own > 0
            && peers.total() > 0
            && theirs * u64::from(self.total()) >= own * u64::from(peers.total())
    }
}

/// The rate of `part` in `all`, with one success and one failure more (Laplace): never 0 or 1.
fn smoothed(part: u32, all: u32) -> f64 {
    (f64::from(part) + 1.0) / (f64::from(all) + 2.0)
}

/// The recent outcomes of one worker, and how long its requests take.
#[derive(Debug, Default)]
pub struct Outcomes {
    window: Mutex<OutcomeWindow>,
    /// Mean service time in microseconds; 0 is not known.
    service_us: AtomicU64,
}

#[derive(Debug, Default)]
struct OutcomeWindow {
    /// Number of the current slot, counted from 0 of the clock.
    slot: u64,
    slots: [OutcomeCounts; SLOTS],
    /// The identities of the last two workers with which a transfer failed, and when.
    partners: [Option<(u64, u64)>; 2],
}

impl OutcomeWindow {
    /// Clears the slots that have left the window. Returns the current one.
    fn advance(&mut self, now_ms: u64) -> &mut OutcomeCounts {
        let slot = now_ms / SLOT_MS;
        let passed = slot.saturating_sub(self.slot).min(SLOTS as u64);
        for back in 0..passed {
            self.slots[((slot - back) % SLOTS as u64) as usize] = OutcomeCounts::default();
        }
        self.slot = self.slot.max(slot);
        &mut self.slots[(self.slot % SLOTS as u64) as usize]
    }
}

impl Outcomes {
    /// Counts a request that the worker has served.
    pub fn succeeded(&self, now_ms: u64) {
        let mut window = self.window.lock();
        let counts = window.advance(now_ms);
        counts.succeeded = counts.succeeded.saturating_add(1);
    }

    /// Counts a failure of the worker.
    pub fn failed(&self, now_ms: u64) {
        let mut window = self.window.lock();
        let counts = window.advance(now_ms);
        counts.failed = counts.failed.saturating_add(1);
    }

    /// Counts a failed transfer between this worker and the one with the identity `partner`.
    pub fn transfer_failed(&self, now_ms: u64, partner: u64) {
        let mut window = self.window.lock();
        let counts = window.advance(now_ms);
        counts.transfers_failed = counts.transfers_failed.saturating_add(1);
        let [last, before] = window.partners;
        let is_last = last.is_some_and(|(identity, _)| identity == partner);
        window.partners = [Some((partner, now_ms)), if is_last { before } else { last }];
    }

    /// Whether transfers with at least two other workers failed within [`OUTCOME_WINDOW_MS`].
    pub fn fails_with_several(&self, now_ms: u64) -> bool {
        let partners = self.window.lock().partners;
        let is_recent = |(_, at_ms)| now_ms.saturating_sub(at_ms) < OUTCOME_WINDOW_MS;
        partners.into_iter().all(|partner| partner.is_some_and(is_recent))
    }

    /// Counts a client error, which may be the request's fault.
    pub fn refused(&self, now_ms: u64) {
        let mut window = self.window.lock();
        let counts = window.advance(now_ms);
        counts.refused = counts.refused.saturating_add(1);
    }

    /// Takes back one refusal: a peer has shown whose fault it was.
    pub fn settle_refusal(&self, now_ms: u64) {
        let mut window = self.window.lock();
        window.advance(now_ms);
        if let Some(counts) = window.slots.iter_mut().find(|counts| counts.refused > 0) {
            counts.refused -= 1;
        }
    }

    /// Forgets all outcomes: what follows an ejection is judged by itself.
    pub fn clear(&self) {
        let mut window = self.window.lock();
        (window.slots, window.partners) = Default::default();
    }

    /// Returns the outcomes of the last [`OUTCOME_WINDOW_MS`].
    pub fn counts(&self, now_ms: u64) -> OutcomeCounts {
        let mut window = self.window.lock();
        window.advance(now_ms);
        window.slots.iter().copied().fold(OutcomeCounts::default(), OutcomeCounts::plus)
    }

    /// Records how long the worker took for a request that it served.
    pub fn took(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        // Of two concurrent updates one may be lost, which does not change a mean.
        let before = self.service_us.load(Ordering::Relaxed);
        let mean_us = match before {
            0 => time_us,
            before => {
                let before = before as f64;
                (before + (time_us as f64 - before) * SERVICE_TIME_WEIGHT) as u64
            }
        };
        self.service_us.store(mean_us.max(1), Ordering::Relaxed);
    }

    /// Returns the mean time of the requests that the worker served. `None` if it has served none.
    pub fn service_time(&self) -> Option<Duration> {
        let mean_us = self.service_us.load(Ordering::Relaxed);
        (mean_us > 0).then(|| Duration::from_micros(mean_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(succeeded: u32, failed: u32, refused: u32) -> OutcomeCounts {
        OutcomeCounts { succeeded, failed, refused, transfers_failed: 0 }
    }

    #[test]
    fn a_worker_that_fails_like_its_peers_is_no_outlier() {
        assert!(counts(0, 3, 0).is_outlier(&counts(10, 0, 0)));
        assert!(!counts(0, 2, 0).is_outlier(&counts(10, 0, 0)), "too few failures");
        assert!(!counts(0, 30, 0).is_outlier(&counts(9, 0, 0)), "too few requests of its peers");
        assert!(!counts(0, 30, 0).is_outlier(&counts(0, 90, 0)), "all of them fail");
        assert!(!counts(4, 8, 0).is_outlier(&counts(18, 18, 0)), "half of all requests fail");
        assert!(!counts(90, 10, 0).is_outlier(&counts(300, 0, 0)), "a tenth is not enough");
        assert!(counts(70, 30, 0).is_outlier(&counts(300, 0, 0)));
        assert!(!counts(0, 0, 30).is_outlier(&counts(300, 0, 0)), "the request may be at fault");
    }

    #[test]
    fn a_worker_is_suspect_only_beside_peers_that_serve() {
        assert!(!counts(0, 0, 1).is_suspect(&counts(100, 0, 0)), "one may be the request's fault");
        assert!(counts(0, 0, 2).is_suspect(&counts(10, 0, 0)));
        assert!(counts(0, 1, 1).is_suspect(&counts(10, 0, 0)));
        for requests in 1..100 {
            assert!(!counts(0, 0, requests).is_suspect(&counts(0, 0, 0)), "no peer has answered");
            let peers = counts(0, 0, 3 * requests);
            assert!(!counts(0, 0, requests).is_suspect(&peers), "all refuse");
        }
        assert!(!counts(8, 0, 2).is_suspect(&counts(27, 0, 3)), "a tenth of all is refused");
    }

    #[test]
    fn peers_match_a_worker_that_fails_if_they_fail_as_often() {
        let served = counts(10, 0, 0);
        assert!(!counts(0, 0, 1).is_matched_by(&served));
        assert!(!counts(0, 0, 1).is_matched_by(&counts(0, 0, 0)), "they have had no request");
        assert!(counts(0, 0, 1).is_matched_by(&counts(0, 1, 0)));
        assert!(!served.is_matched_by(&served), "its first failure is not counted yet");
    }

    #[test]
    fn outcomes_leave_the_window_and_a_settled_refusal_does_at_once() {
        let outcomes = Outcomes::default();
        outcomes.succeeded(1_000);
        outcomes.failed(7_000);
        outcomes.refused(7_000);
        assert_eq!(outcomes.counts(29_000), counts(1, 1, 1));
        assert_eq!(outcomes.counts(30_000), counts(0, 1, 1));
        outcomes.settle_refusal(30_000);
        outcomes.settle_refusal(30_000);
        assert_eq!(outcomes.counts(30_000), counts(0, 1, 0));
        outcomes.failed(1_000);
        assert_eq!(
            outcomes.counts(1_000),
            counts(0, 2, 0),
            "a clock that goes back clears nothing"
        );
        assert_eq!(outcomes.counts(90_000), counts(0, 0, 0));
        outcomes.failed(90_000);
        outcomes.clear();
        assert_eq!(outcomes.counts(90_000), counts(0, 0, 0));
    }

    #[test]
    fn a_failed_transfer_counts_apart_and_with_its_partner() {
        let outcomes = Outcomes::default();
        for partner in [1, 1, 1, 2] {
            assert!(!outcomes.fails_with_several(0), "one partner may be at fault");
            outcomes.transfer_failed(0, partner);
        }
        assert!(outcomes.fails_with_several(0));
        let counted = outcomes.counts(0);
        assert_eq!((counted.transfers_failed, counted.judged()), (4, 0));
        assert_eq!(counted.with_transfers(), counts(0, 4, 0));
        outcomes.transfer_failed(OUTCOME_WINDOW_MS, 2);
        assert!(!outcomes.fails_with_several(OUTCOME_WINDOW_MS), "the other one's are old");
        outcomes.clear();
        assert_eq!(outcomes.counts(OUTCOME_WINDOW_MS), OutcomeCounts::default());
    }

    #[test]
    fn the_service_time_follows_the_last_requests() {
        let outcomes = Outcomes::default();
        assert_eq!(outcomes.service_time(), None);
        outcomes.took(Duration::from_millis(100));
        assert_eq!(outcomes.service_time(), Some(Duration::from_millis(100)));
        for _ in 0..60 {
            outcomes.took(Duration::from_millis(500));
        }
        let mean = outcomes.service_time().unwrap();
        assert!(
            mean > Duration::from_millis(490) && mean <= Duration::from_millis(500),
            "{mean:?}"
        );
    }
}
