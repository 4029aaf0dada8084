//! [`InnerParts`]: what happened inside the engines of one request, as they and the agents measured it.

use crate::frame::{RoomOutcome, RoomSide};
use crate::provenance::{Measured, Provenance};
use crate::sglang::usage::AnswerReport;

/// Milliseconds inside the engines. They lie inside of the parts `prefill` and `first_byte` of a
/// [`Timeline`](crate::timeline::Timeline), and may overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct InnerParts {
    /// Wait in prefill's queue, by its own report.
    pub prefill_queued: Measured<f64>,
    /// Computation of the prompt, by prefill's own report.
    pub prefill_compute: Measured<f64>,
    /// From the end of `sent` until decode sends prefill where the KV cache goes: decode's wait for the room
    /// of the KV cache, and its handshake with prefill.
    pub decode_admitted: Measured<f64>,
    /// From there until the last rank of prefill reports success: prefill's queue and computation and the
    /// transfer, by one clock.
    pub handover: Measured<f64>,
    /// `handover` without prefill's queue and computation, as far as these are reported.
    pub transfer: Measured<f64>,
    /// From the end of `handover` until decode's first event is at the gateway.
    pub decode_first_step: Measured<f64>,
}

/// The names of the parts that agents measure.
pub const OF_AGENTS: [&str; 4] = ["decode_admitted", "handover", "transfer", "decode_first_step"];

/// A KV transfer as an agent saw it. Times are in microseconds since the head of the request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenTransfer {
    pub side: RoomSide,
    pub outcome: RoomOutcome,
    /// From the first index message to the end, by the agent's clock alone.
    pub handover_us: Option<u64>,
    /// The first index message, by the gateway's clock; `None` if it was not seen, or the clocks were not
    /// compared.
    pub admitted_us: Option<i64>,
    /// The end of the transfer, by the gateway's clock.
    pub ended_us: Option<i64>,
    /// How far off times by the gateway's clock can be.
    pub clock_error_us: u32,
}

impl SeenTransfer {
    /// Whether the KV cache is at decode.
    pub fn succeeded(&self) -> bool {
        matches!(self.outcome, RoomOutcome::Success | RoomOutcome::SuccessOfSeen)
    }
}

/// What the parts are computed from. Times are in microseconds since the head of the request arrived.
#[derive(Clone, Copy, Debug, Default)]
pub struct InnerMoments {
    /// What prefill reports in its answer.
    pub report: AnswerReport,
    /// The last byte of the legs was written.
    pub sent_us: Option<u64>,
    pub first_event_us: Option<u64>,
    pub transfer: Option<SeenTransfer>,
}

impl InnerParts {
    /// The parts between the moments.
    ///
    /// Only differences of one clock are exact. A part between the gateway and an agent is estimated. The
    /// first step is unknown if it ends before it begins by more than the clocks can differ.
    pub fn of(moments: &InnerMoments) -> InnerParts {
        let InnerMoments { report, sent_us, first_event_us, transfer } = *moments;
        let reported = InnerParts {
            prefill_queued: report.queue_ms,
            prefill_compute: report.compute_ms,
            ..InnerParts::default()
        };
        let Some(seen) = transfer else { return reported };
        let sent = sent_us.map(signed);
        // The decode leg may be admitted before the prefill leg is written: it has not waited then.
        let admitted = seen.admitted_us.zip(sent).map(|(admitted, sent)| (admitted - sent).max(0));
        let done = seen.succeeded();
        let handover_us = seen.handover_us.filter(|_| done);
        let is_exact = seen.outcome == RoomOutcome::Success && seen.side == RoomSide::Decode;
        let provenance = if is_exact { Provenance::Exact } else { Provenance::Estimated };
        let first_step =
            seen.ended_us.filter(|_| done).zip(first_event_us).and_then(|(end, first)| {
                let after = signed(first) - end;
                (after >= -i64::from(seen.clock_error_us)).then_some(after.max(0))
            });
        InnerParts {
            decode_admitted: Measured::new(admitted.map(millis), Provenance::Estimated),
            handover: Measured::new(handover_us.map(|us| us as f64 / 1e3), provenance),
            transfer: Measured::new(
                handover_us.map(|us| transfer_ms(us, &seen, sent, &report)),
                Provenance::Estimated,
            ),
            decode_first_step: Measured::new(first_step.map(millis), Provenance::Estimated),
            ..reported
        }
    }

    /// The parts that agents measure, in the order of [`OF_AGENTS`].
    pub fn of_agents(&self) -> [Measured<f64>; OF_AGENTS.len()] {
        [self.decode_admitted, self.handover, self.transfer, self.decode_first_step]
    }
}

/// What remains of the handover without what prefill reports to have done meanwhile. Prefill computes once
/// it has the indices and the prompt.
fn transfer_ms(
    handover_us: u64,
    seen: &SeenTransfer,
    sent: Option<i64>,
    report: &AnswerReport,
) -> f64 {
    let upload = seen.admitted_us.zip(sent).map_or(0, |(admitted, sent)| (sent - admitted).max(0));
    let prefill = report.queue_ms.value().unwrap_or(0.0) + report.compute_ms.value().unwrap_or(0.0);
    (handover_us as f64 / 1e3 - millis(upload) - prefill).max(0.0)
}

fn millis(us: i64) -> f64 {
    us as f64 / 1e3
}

fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: SeenTransfer = SeenTransfer {
        side: RoomSide::Decode,
        outcome: RoomOutcome::Success,
        handover_us: Some(150_000),
        admitted_us: Some(30_000),
        ended_us: Some(180_000),
        clock_error_us: 400,
    };

    fn moments(transfer: SeenTransfer) -> InnerMoments {
        InnerMoments {
            sent_us: Some(10_000),
            first_event_us: Some(195_000),
            transfer: Some(transfer),
            ..InnerMoments::default()
        }
    }

    fn of(transfer: SeenTransfer) -> InnerParts {
        InnerParts::of(&moments(transfer))
    }

    #[test]
    fn one_clock_is_exact_and_two_are_estimated() {
        let parts = of(SEEN);
        assert_eq!(parts.decode_admitted, Measured::estimated(20.0));
        assert_eq!(parts.handover, Measured::exact(150.0));
        assert_eq!(parts.transfer, Measured::estimated(150.0));
        assert_eq!(parts.decode_first_step, Measured::estimated(15.0));
        let report = AnswerReport {
            queue_ms: Measured::exact(20.0),
            compute_ms: Measured::exact(100.0),
            ..AnswerReport::default()
        };
        let parts = InnerParts::of(&InnerMoments { report, ..moments(SEEN) });
        assert_eq!(parts.transfer, Measured::estimated(30.0));
        assert_eq!(parts.prefill_compute, Measured::exact(100.0));
    }

    #[test]
    fn without_a_comparison_of_clocks_only_the_handover_is_known() {
        let parts = of(SeenTransfer { admitted_us: None, ended_us: None, ..SEEN });
        assert_eq!(parts.handover, Measured::exact(150.0));
        let unknown = Measured::unknown();
        assert_eq!((parts.decode_admitted, parts.decode_first_step), (unknown, unknown));
        assert_eq!(InnerParts::of(&InnerMoments::default()), InnerParts::default());
    }

    #[test]
    fn what_was_seen_in_part_or_from_prefills_side_is_not_exact() {
        let some = SeenTransfer { outcome: RoomOutcome::SuccessOfSeen, ..SEEN };
        let prefill = SeenTransfer { side: RoomSide::Prefill, ..SEEN };
        for seen in [some, prefill] {
            assert_eq!(of(seen).handover, Measured::estimated(150.0));
        }
    }

    #[test]
    fn a_transfer_that_failed_or_goes_on_has_no_end() {
        for outcome in [RoomOutcome::Open, RoomOutcome::Failed, RoomOutcome::Aborted] {
            let parts = of(SeenTransfer { outcome, ..SEEN });
            assert_eq!(parts.decode_admitted, Measured::estimated(20.0));
            let ends = [parts.handover, parts.transfer, parts.decode_first_step];
            assert_eq!(ends, [Measured::unknown(); 3], "{outcome:?}");
        }
    }

    #[test]
    fn an_order_that_the_clocks_cannot_explain_is_unknown() {
        let late = |ended_us| of(SeenTransfer { ended_us: Some(ended_us), ..SEEN });
        assert_eq!(late(195_400).decode_first_step, Measured::estimated(0.0));
        assert_eq!(late(195_401).decode_first_step, Measured::unknown());
        // Admitted while prefill's leg is still being written: prefill begins later.
        let early = of(SeenTransfer { admitted_us: Some(-5_000), ..SEEN });
        assert_eq!(early.decode_admitted, Measured::estimated(0.0));
        assert_eq!(early.transfer, Measured::estimated(135.0));
    }
}
