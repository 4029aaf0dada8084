//! [`AttemptMarks`]: the moments of one attempt that its legs reach in tasks of their own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use router_core::sglang::usage::AnswerReport;
use tokio::time::Instant;

use crate::http_client::OnWritten;

/// The moments of one attempt, in microseconds since the head of its request arrived.
#[derive(Debug)]
pub(crate) struct AttemptMarks {
    origin: Instant,
    written: LastOf,
    prefill_answered: LastOf,
    has_prefill: bool,
    report: OnceLock<AnswerReport>,
}

impl AttemptMarks {
    /// Marks of an attempt on a pair, which has two legs for each of `samples`.
    pub(crate) fn of_pair(origin: Instant, samples: u32) -> AttemptMarks {
        AttemptMarks {
            origin,
            written: LastOf::new(samples.saturating_mul(2)),
            prefill_answered: LastOf::new(samples),
            has_prefill: true,
            report: OnceLock::new(),
        }
    }

    /// Marks of an attempt on one engine.
    pub(crate) fn alone(origin: Instant) -> AttemptMarks {
        let (written, has_prefill) = (LastOf::new(1), false);
        AttemptMarks { written, has_prefill, ..AttemptMarks::of_pair(origin, 0) }
    }

    /// The prefill leg of one sample has its whole answer.
    pub(crate) fn prefill_answered(&self, answer: &[u8]) {
        self.prefill_answered.reached(self.origin);
        // The samples have one prompt: the first report is as good as another.
        self.report.get_or_init(|| AnswerReport::of(answer));
    }

    /// When the last leg was written; `None` while one is not.
    pub(crate) fn sent_us(&self) -> Option<u64> {
        self.written.at_us()
    }

    /// When the last prefill leg had its answer; `None` while one has not.
    pub(crate) fn prefill_answered_us(&self) -> Option<u64> {
        self.prefill_answered.at_us().filter(|_| self.has_prefill)
    }

    pub(crate) fn has_prefill(&self) -> bool {
        self.has_prefill
    }

    /// What prefill reported of the request.
    pub(crate) fn report(&self) -> AnswerReport {
        self.report.get().copied().unwrap_or_default()
    }
}

impl OnWritten for AttemptMarks {
    fn written(&self) {
        self.written.reached(self.origin);
    }
}

/// The time of the last of several events, known once all have happened.
#[derive(Debug)]
struct LastOf {
    missing: AtomicU32,
    at_us: AtomicU64,
}

impl LastOf {
    fn new(events: u32) -> LastOf {
        LastOf { missing: AtomicU32::new(events), at_us: AtomicU64::new(0) }
    }

    /// One event happens now. No event is reported twice.
    fn reached(&self, origin: Instant) {
        let now_us = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.at_us.fetch_max(now_us, Ordering::Relaxed);
        // Released with the time: who sees that none is missing sees the last time too.
        self.missing.fetch_sub(1, Ordering::Release);
    }

    fn at_us(&self) -> Option<u64> {
        let all = self.missing.load(Ordering::Acquire) == 0;
        all.then(|| self.at_us.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_known_once_every_leg_has_reached_it() {
        let marks = AttemptMarks::of_pair(Instant::now(), 2);
        for leg in 1..=4 {
            assert_eq!(marks.sent_us(), None, "before leg {leg}");
            tokio::time::advance(MS).await;
            marks.written();
        }
        assert_eq!(marks.sent_us(), Some(4000));
        marks.prefill_answered(br#"{"usage":{"prompt_tokens":3}}"#);
        assert_eq!(marks.prefill_answered_us(), None);
        marks.prefill_answered(b"");
        assert_eq!(marks.prefill_answered_us(), Some(4000));
        assert_eq!(marks.report().prompt_tokens.value(), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn one_engine_has_one_leg_and_no_prefill() {
        let marks = AttemptMarks::alone(Instant::now());
        marks.written();
        assert_eq!((marks.sent_us(), marks.prefill_answered_us()), (Some(0), None));
        assert!(!marks.has_prefill());
    }
}
