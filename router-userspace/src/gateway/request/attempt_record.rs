//! [`AttemptRecord`]: what is recorded of the attempts of a request while it runs.

use std::sync::Arc;
use std::time::Duration;

use router_core::pair::Pair;
use router_core::timeline::Moments;
use tokio::time::Instant;

use crate::gateway::placement::explain::ChoiceExplanation;
use crate::gateway::placement::placer::Placement;
use crate::gateway::timeline::attempt_marks::AttemptMarks;
use crate::gateway::timeline::summary::{AttemptedWorkers, FailedAttempt, MAX_RETRIES, shortened};
use crate::gateway::upstream::fault::Fault;

/// What is recorded of the attempts of a request.
#[derive(Debug)]
pub(crate) struct AttemptRecord {
    /// When the head of the request arrived.
    started: Instant,
    pub(crate) count: u32,
    /// The workers of the last attempt.
    pub(crate) workers: AttemptedWorkers,
    /// The data-parallel ranks that the last attempt was assigned to.
    pub(crate) ranks: Pair<Option<u32>>,
    /// Why this pair was chosen, if the policy predicts.
    pub(crate) explanation: Option<Arc<ChoiceExplanation>>,
    pub(crate) retries: Vec<FailedAttempt>,
    first_began: Option<Instant>,
    began: Option<Instant>,
    /// Since when the request has waited for a worker, before an attempt at one alone.
    waits_since: Option<Instant>,
    placed: Option<Instant>,
    /// The moments of the last attempt's legs.
    pub(crate) marks: Option<Arc<AttemptMarks>>,
}

impl AttemptRecord {
    pub(crate) fn new(started: Instant) -> AttemptRecord {
        AttemptRecord {
            started,
            count: 0,
            workers: AttemptedWorkers::default(),
            ranks: Pair::default(),
            explanation: None,
            retries: Vec::new(),
            first_began: None,
            began: None,
            waits_since: None,
            placed: None,
            marks: None,
        }
    }

    /// An attempt begins: it needs a placement. Returns its number.
    pub(crate) fn begin(&mut self) -> u32 {
        let now = Instant::now();
        self.first_began.get_or_insert(now);
        self.began = Some(now);
        (self.placed, self.marks, self.explanation) = (None, None, None);
        (self.workers, self.ranks) = (AttemptedWorkers::default(), Pair::default());
        self.count += 1;
        self.count
    }

    /// The request waits until a pool has a worker for its first attempt.
    pub(crate) fn wait_for_worker(&mut self) {
        let now = Instant::now();
        (self.first_began, self.began, self.waits_since) = (Some(now), Some(now), Some(now));
    }

    /// An attempt at one worker begins, without a queue for its capacity. Returns its number.
    pub(crate) fn begin_alone(&mut self, worker: &Arc<str>) -> u32 {
        let waits_since = self.waits_since.take();
        let number = self.begin();
        self.workers.worker = Some(Arc::clone(worker));
        self.placed = self.began;
        self.began = waits_since.or(self.began);
        number
    }

    /// The attempt that began has its workers. Returns the marks for its legs.
    pub(crate) fn set_placement(
        &mut self,
        placement: &Placement,
        samples: u32,
    ) -> Arc<AttemptMarks> {
        self.placed = Some(Instant::now());
        let marks = match placement {
            Placement::Pair { leases, explanation, ranks, .. } => {
                self.explanation.clone_from(explanation);
                self.workers.prefill = Some(Arc::clone(&leases.prefill.worker().name));
                self.ranks = ranks.as_ref().map(|rank| rank.as_ref().map(|rank| rank.rank));
                AttemptMarks::of_pair(self.started, samples)
            }
            Placement::Single(_) => AttemptMarks::alone(self.started),
        };
        let last = placement.leases().last();
        self.workers.worker = last.map(|lease| Arc::clone(&lease.worker().name));
        let marks = Arc::new(marks);
        self.marks = Some(Arc::clone(&marks));
        marks
    }

    /// The attempt failed, and another one follows.
    pub(crate) fn retry(&mut self, fault: &Fault) {
        if self.retries.len() < MAX_RETRIES {
            let took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
            self.retries.push(FailedAttempt {
                reason: fault.reason(),
                detail: shortened(&fault.detail()),
                workers: self.workers.clone(),
                duration_ms: took.as_secs_f64() * 1e3,
            });
        }
    }

    /// The moments of the request so far. The caller adds those of its answer.
    pub(crate) fn moments(&self) -> Moments {
        let marks = self.marks.as_deref();
        let at = |moment: Option<Instant>| moment.map(|at| micros_between(self.started, at));
        Moments {
            first_attempt_us: at(self.first_began),
            last_attempt_us: at(self.began),
            placed_us: at(self.placed),
            sent_us: marks.and_then(AttemptMarks::sent_us),
            prefill_answered_us: marks.and_then(AttemptMarks::prefill_answered_us),
            has_prefill: marks.is_some_and(AttemptMarks::has_prefill),
            is_forwarded: self.placed.is_some() && marks.is_none(),
            ..Moments::default()
        }
    }
}

/// Microseconds from one moment to a later one.
pub(super) fn micros_between(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_worker_is_before_the_first_attempt_is_placed() {
        let mut attempts = AttemptRecord::new(Instant::now());
        tokio::time::advance(Duration::from_micros(5)).await;
        attempts.wait_for_worker();
        tokio::time::advance(Duration::from_micros(70)).await;
        assert_eq!(attempts.begin_alone(&"a".into()), 1);
        let moments = attempts.moments();
        assert_eq!((moments.first_attempt_us, moments.last_attempt_us), (Some(5), Some(5)));
        assert_eq!(moments.placed_us, Some(75));
        // Only the first attempt has waited.
        attempts.begin_alone(&"b".into());
        let moments = attempts.moments();
        assert_eq!((moments.first_attempt_us, moments.last_attempt_us), (Some(5), Some(75)));
    }
}
