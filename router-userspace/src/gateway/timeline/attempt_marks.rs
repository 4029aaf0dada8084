//! [`AttemptMarks`]: the moments of one attempt that its legs reach in tasks of their own, and what agents
//! report of its KV transfer.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use router_core::frame::{RoomOutcome, RoomRecord, RoomSide};
use router_core::inner_parts::SeenTransfer;
use router_core::sglang::Room;
use router_core::sglang::usage::AnswerReport;
use tokio::time::Instant;

use crate::clock::MonotonicClock;
use crate::http_client::OnWritten;
use crate::rooms::{ClockOffset, OnTransfer, RoomRegistry};

/// The moments of one attempt, in microseconds since the head of its request arrived.
#[derive(Debug)]
pub(crate) struct AttemptMarks {
    origin: Instant,
    written: LastOf,
    prefill_answered: LastOf,
    has_prefill: bool,
    has_one_room: bool,
    report: OnceLock<AnswerReport>,
    /// `origin` on the gateway's clock, in microseconds, once a room is registered.
    origin_us: OnceLock<u64>,
    transfer: Mutex<TransferState>,
}

/// Called with a transfer that has ended.
type OnEnd = Box<dyn FnOnce(&SeenTransfer) + Send>;

/// What an agent saw of the transfer, and what is to be done once it has ended.
#[derive(Default)]
struct TransferState {
    seen: Option<SeenTransfer>,
    on_end: Option<OnEnd>,
}

impl fmt::Debug for TransferState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferState").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl AttemptMarks {
    /// Marks of an attempt on a pair, which has two legs for each of `samples`.
    pub(crate) fn of_pair(origin: Instant, samples: u32) -> AttemptMarks {
        AttemptMarks {
            origin,
            written: LastOf::new(samples.saturating_mul(2)),
            prefill_answered: LastOf::new(samples),
            has_prefill: true,
            has_one_room: samples == 1,
            report: OnceLock::new(),
            origin_us: OnceLock::new(),
            transfer: Mutex::default(),
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

impl AttemptMarks {
    /// Whether an agent can report of its transfer: with several, nothing says which the first event is of.
    pub(crate) fn has_one_room(&self) -> bool {
        self.has_one_room
    }

    /// Lets agents report of the transfer of an attempt that is about to be sent with `rooms`.
    pub(crate) fn follow_rooms(
        self: &Arc<Self>,
        rooms: &[Room],
        registry: &RoomRegistry,
        clock: MonotonicClock,
    ) {
        let [room] = rooms else { return };
        if self.has_one_room {
            let since = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.origin_us.get_or_init(|| clock.now_us().saturating_sub(since));
            let marks: Weak<AttemptMarks> = Arc::downgrade(self);
            registry.register(room.value(), marks);
        }
    }

    /// What an agent saw of the transfer so far.
    pub(crate) fn transfer(&self) -> Option<SeenTransfer> {
        self.transfer.lock().seen
    }

    /// Calls `on_end` once the transfer has ended, which may be now.
    pub(crate) fn when_transferred(&self, on_end: impl FnOnce(&SeenTransfer) + Send + 'static) {
        let mut transfer = self.transfer.lock();
        match transfer.seen.filter(|seen| seen.outcome != RoomOutcome::Open) {
            Some(seen) => {
                drop(transfer);
                on_end(&seen);
            }
            None => transfer.on_end = Some(Box::new(on_end)),
        }
    }
}

impl OnTransfer for AttemptMarks {
    fn on_transfer(&self, record: &RoomRecord, clock: Option<ClockOffset>) {
        let Some(origin_us) = self.origin_us.get() else { return };
        let next = seen_transfer(record, clock, *origin_us);
        let mut transfer = self.transfer.lock();
        // Decode's side is closer to the first event. Agents of both sides may report.
        let is_other =
            |seen: SeenTransfer| seen.side == RoomSide::Decode && record.side == RoomSide::Prefill;
        if transfer.seen.is_some_and(is_other) {
            return;
        }
        transfer.seen = Some(next);
        let on_end = match next.outcome {
            RoomOutcome::Open => None,
            _ => transfer.on_end.take(),
        };
        drop(transfer);
        if let Some(on_end) = on_end {
            on_end(&next);
        }
    }
}

/// A record with its times since `origin_us` on the gateway's clock.
fn seen_transfer(record: &RoomRecord, clock: Option<ClockOffset>, origin_us: u64) -> SeenTransfer {
    let time = |agent_us: u64| {
        let clock = clock.filter(|_| agent_us > 0)?;
        let agent_us = i64::try_from(agent_us).ok()?;
        Some(agent_us.saturating_add(clock.offset_us).saturating_sub_unsigned(origin_us))
    };
    let has_both = record.admitted_us > 0 && record.ended_us >= record.admitted_us;
    SeenTransfer {
        side: record.side,
        outcome: record.outcome,
        handover_us: has_both.then(|| record.ended_us - record.admitted_us),
        admitted_us: time(record.admitted_us),
        ended_us: time(record.ended_us),
        clock_error_us: clock.map_or(0, |clock| clock.error_us),
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

    #[tokio::test]
    async fn decodes_side_of_a_transfer_counts_and_its_end_is_reported_once() {
        let reported = Arc::new(AtomicU32::new(0));
        let marks = AttemptMarks::of_pair(Instant::now(), 1);
        let clock = Some(ClockOffset { offset_us: -1_000, error_us: 9 });
        let record = |side, outcome, ended_us| RoomRecord {
            side,
            outcome,
            admitted_us: 5_000,
            ended_us,
            ..RoomRecord::default()
        };
        marks.on_transfer(&record(RoomSide::Decode, RoomOutcome::Open, 0), clock);
        assert_eq!(marks.transfer(), None, "it has no room yet");
        marks.origin_us.get_or_init(|| 3_000);
        let tell = || {
            let reported = Arc::clone(&reported);
            move |_: &SeenTransfer| _ = reported.fetch_add(1, Ordering::Relaxed)
        };
        marks.on_transfer(&record(RoomSide::Decode, RoomOutcome::Open, 0), clock);
        let seen = marks.transfer().unwrap();
        assert_eq!((seen.admitted_us, seen.ended_us, seen.handover_us), (Some(1_000), None, None));
        marks.when_transferred(tell());
        marks.on_transfer(&record(RoomSide::Prefill, RoomOutcome::Success, 6_000), clock);
        assert_eq!(
            (marks.transfer().unwrap().side, reported.load(Ordering::Relaxed)),
            (RoomSide::Decode, 0)
        );
        marks.on_transfer(&record(RoomSide::Decode, RoomOutcome::Success, 7_000), clock);
        let seen = marks.transfer().unwrap();
        assert_eq!((seen.ended_us, seen.handover_us), (Some(3_000), Some(2_000)));
        marks.on_transfer(&record(RoomSide::Decode, RoomOutcome::Success, 7_000), clock);
        assert_eq!(reported.load(Ordering::Relaxed), 1);
        marks.when_transferred(tell());
        assert_eq!(reported.load(Ordering::Relaxed), 2, "it has ended");
        marks.on_transfer(&record(RoomSide::Decode, RoomOutcome::Success, 7_000), None);
        assert_eq!(marks.transfer().unwrap().ended_us, None, "the clocks are not known");
    }

    #[tokio::test(start_paused = true)]
    async fn one_engine_has_one_leg_and_no_prefill() {
        let marks = AttemptMarks::alone(Instant::now());
        marks.written();
        assert_eq!((marks.sent_us(), marks.prefill_answered_us()), (Some(0), None));
        assert!(!marks.has_prefill());
    }
}
