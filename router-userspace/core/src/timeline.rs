//! [`Timeline`]: where the time of one request went, part by part.
//!
//! The parts of a gateway follow each other without a gap, so that they add up to the measured time. What
//! happens inside the engines is in [`InnerParts`](crate::inner_parts::InnerParts): these may overlap.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::provenance::{Measured, Provenance};

/// A part of a request's time, as its gateway sees it, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimelinePart {
    /// From the head of the request until its body is read and checked.
    Received,
    /// Attempts that failed, and the pauses after them.
    Retried,
    /// Wait for capacity.
    Queued,
    /// From the choice of the workers until the last byte of every leg is written to its connection.
    Sent,
    /// Until prefill has answered: its queue, its computation and the KV transfer.
    Prefill,
    /// Until decode's first event; without a prefill leg, from the end of `Sent`.
    FirstByte,
    /// From the first event to the last byte.
    Done,
}

impl TimelinePart {
    pub const ALL: [TimelinePart; 7] = [
        TimelinePart::Received,
        TimelinePart::Retried,
        TimelinePart::Queued,
        TimelinePart::Sent,
        TimelinePart::Prefill,
        TimelinePart::FirstByte,
        TimelinePart::Done,
    ];
    /// The parts of the time to first token.
    pub const OF_TTFT: usize = 6;

    /// The name in JSON, in logs and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            TimelinePart::Received => "received",
            TimelinePart::Retried => "retried",
            TimelinePart::Queued => "queued",
            TimelinePart::Sent => "sent",
            TimelinePart::Prefill => "prefill",
            TimelinePart::FirstByte => "first_byte",
            TimelinePart::Done => "done",
        }
    }
}

/// The moments that a gateway saw of a request, in microseconds since its head arrived. `None`: not
/// reached, or not seen. All but the first are those of the last attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moments {
    pub first_attempt_us: Option<u64>,
    pub last_attempt_us: Option<u64>,
    pub placed_us: Option<u64>,
    pub sent_us: Option<u64>,
    pub prefill_answered_us: Option<u64>,
    /// `None` if the answer is not a stream.
    pub first_event_us: Option<u64>,
    pub ended_us: u64,
    /// The request has a prefill leg.
    pub has_prefill: bool,
    /// It is forwarded as it comes: when it was written is not known.
    pub is_forwarded: bool,
    /// The answer was sent to its end.
    pub is_whole: bool,
}

/// The parts of one request in milliseconds. Those that are known add up to its duration, and those before
/// [`TimelinePart::Done`] to its time to first token.
///
/// ```
/// use router_core::timeline::{Moments, Timeline, TimelinePart};
///
/// let moments = Moments {
///     first_attempt_us: Some(1_000),
///     last_attempt_us: Some(1_000),
///     placed_us: Some(3_000),
///     sent_us: Some(3_500),
///     prefill_answered_us: Some(203_500),
///     first_event_us: Some(210_000),
///     ended_us: 900_000,
///     has_prefill: true,
///     is_whole: true,
///     ..Moments::default()
/// };
/// let timeline = Timeline::of(&moments);
/// assert_eq!(timeline.part(TimelinePart::Prefill).value(), Some(200.0));
/// assert_eq!(timeline.part(TimelinePart::Done).value(), Some(690.0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeline {
    parts: [Measured<f64>; TimelinePart::ALL.len()],
    ended_in: TimelinePart,
}

impl Timeline {
    /// The parts between the moments.
    ///
    /// A part whose end was not seen is unknown; the part after it includes its time and is estimated. If
    /// prefill's answer comes after decode's first event, `Prefill` ends with that event, at the latest, and
    /// is estimated, and `FirstByte` is unknown.
    pub fn of(moments: &Moments) -> Timeline {
        let mut parts = PartBuilder::new(moments);
        let is_late = |answered: Option<u64>, first| answered.is_none_or(|at| at > first);
        let bound = moments
            .first_event_us
            .filter(|&first| moments.has_prefill && is_late(moments.prefill_answered_us, first));
        parts.end(TimelinePart::Received, moments.first_attempt_us);
        parts.end(TimelinePart::Retried, moments.last_attempt_us);
        parts.end(TimelinePart::Queued, moments.placed_us);
        parts.end(TimelinePart::Sent, moments.sent_us);
        if let Some(first) = bound {
            parts.is_blurred = true;
            parts.end(TimelinePart::Prefill, Some(first));
        } else {
            if moments.has_prefill {
                parts.end(TimelinePart::Prefill, moments.prefill_answered_us);
            }
            parts.end(TimelinePart::FirstByte, moments.first_event_us);
        }
        parts.finish(moments, bound.is_some())
    }

    /// Milliseconds of a part.
    pub fn part(&self, part: TimelinePart) -> Measured<f64> {
        self.parts[part as usize]
    }

    /// Each part and its milliseconds, in order.
    pub fn parts(&self) -> impl Iterator<Item = (TimelinePart, Measured<f64>)> {
        TimelinePart::ALL.into_iter().zip(self.parts)
    }

    /// The part in which the request ended: [`TimelinePart::Done`] if its answer is whole.
    pub fn ended_in(&self) -> TimelinePart {
        self.ended_in
    }
}

/// In JSON an object with the name of each part.
impl Serialize for Timeline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.parts.len()))?;
        for (part, ms) in self.parts() {
            map.serialize_entry(part.as_str(), &ms)?;
        }
        map.end()
    }
}

/// Goes from moment to moment and measures the parts between them.
struct PartBuilder {
    parts: [Measured<f64>; TimelinePart::ALL.len()],
    /// The end of the last part that was seen.
    from_us: u64,
    ended_us: u64,
    /// The next part includes the time of one whose end was not seen.
    is_blurred: bool,
    last: Option<TimelinePart>,
}

impl PartBuilder {
    fn new(moments: &Moments) -> PartBuilder {
        PartBuilder {
            parts: [Measured::unknown(); TimelinePart::ALL.len()],
            from_us: 0,
            ended_us: moments.ended_us,
            is_blurred: false,
            last: None,
        }
    }

    fn end(&mut self, part: TimelinePart, at_us: Option<u64>) {
        let Some(at_us) = at_us else {
            self.is_blurred = true;
            return;
        };
        // Tasks of their own note the moments: a later one may be noted with an earlier time.
        let at_us = at_us.min(self.ended_us).max(self.from_us);
        let provenance = if self.is_blurred { Provenance::Estimated } else { Provenance::Exact };
        let ms = (at_us - self.from_us) as f64 / 1e3;
        self.parts[part as usize] = Measured::new(Some(ms), provenance);
        (self.from_us, self.is_blurred, self.last) = (at_us, false, Some(part));
    }

    /// The last part ends with the request. One that failed ended in the part after the last whose end was
    /// seen.
    fn finish(mut self, moments: &Moments, is_bounded: bool) -> Timeline {
        let after = |part: TimelinePart| TimelinePart::ALL[(part as usize + 1).min(6)];
        let ended_in = match self.last {
            _ if moments.is_whole => TimelinePart::Done,
            None => TimelinePart::Received,
            Some(TimelinePart::Prefill) if is_bounded => TimelinePart::Done,
            Some(TimelinePart::Sent) if !moments.has_prefill => TimelinePart::FirstByte,
            Some(TimelinePart::Queued) if moments.is_forwarded => TimelinePart::FirstByte,
            Some(last) => after(last),
        };
        if !moments.is_whole {
            self.is_blurred = moments.is_forwarded && ended_in == TimelinePart::FirstByte;
        }
        self.end(ended_in, Some(moments.ended_us));
        Timeline { parts: self.parts, ended_in }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: Moments = Moments {
        first_attempt_us: Some(100),
        last_attempt_us: Some(5_100),
        placed_us: Some(25_100),
        sent_us: Some(26_000),
        prefill_answered_us: Some(126_000),
        first_event_us: Some(130_000),
        ended_us: 200_000,
        has_prefill: true,
        is_forwarded: false,
        is_whole: true,
    };

    fn shown(moments: Moments) -> Vec<String> {
        let timeline = Timeline::of(&moments);
        let known = timeline.parts().filter_map(|(part, ms)| {
            let (name, provenance) = (part.as_str(), ms.provenance().as_str());
            ms.value().map(|value| format!("{name} {value} {provenance}"))
        });
        known.chain([format!("ended in {}", timeline.ended_in().as_str())]).collect()
    }

    #[test]
    fn every_part_of_a_stream_is_exact() {
        let want = [
            "received 0.1 exact",
            "retried 5 exact",
            "queued 20 exact",
            "sent 0.9 exact",
            "prefill 100 exact",
            "first_byte 4 exact",
            "done 70 exact",
            "ended in done",
        ];
        assert_eq!(shown(WHOLE), want);
    }

    #[test]
    fn a_prefill_that_answers_after_the_first_event_has_ended_by_then() {
        for answered in [None, Some(131_000)] {
            let shown = shown(Moments { prefill_answered_us: answered, ..WHOLE });
            assert_eq!(shown[4..], ["prefill 104 estimated", "done 70 exact", "ended in done"]);
        }
    }

    #[test]
    fn a_request_without_a_prefill_leg_has_no_prefill() {
        let alone = Moments { prefill_answered_us: None, has_prefill: false, ..WHOLE };
        assert_eq!(shown(alone)[4..], ["first_byte 104 exact", "done 70 exact", "ended in done"]);
        let failed = Moments { first_event_us: None, is_whole: false, ..alone };
        assert_eq!(shown(failed)[4..], ["first_byte 174 exact", "ended in first_byte"]);
    }

    #[test]
    fn a_forwarded_request_that_fails_ends_at_its_engine() {
        let forwarded = Moments {
            sent_us: None,
            prefill_answered_us: None,
            first_event_us: None,
            has_prefill: false,
            is_forwarded: true,
            is_whole: false,
            ..WHOLE
        };
        let want = ["first_byte 174.9 estimated", "ended in first_byte"];
        assert_eq!(shown(forwarded)[3..], want);
    }

    #[test]
    fn an_answer_that_is_no_stream_has_no_first_event() {
        let whole = Moments { first_event_us: None, ..WHOLE };
        assert_eq!(shown(whole)[4..], ["prefill 100 exact", "done 74 estimated", "ended in done"]);
    }

    #[test]
    fn a_failed_request_ends_in_the_part_that_it_had_reached() {
        let failed = Moments { first_event_us: None, is_whole: false, ..WHOLE };
        let in_prefill = Moments { prefill_answered_us: None, ..failed };
        let in_queue = Moments { placed_us: None, sent_us: None, ..in_prefill };
        let unread = Moments { first_attempt_us: None, last_attempt_us: None, ..in_queue };
        let broken = Moments { first_event_us: Some(130_000), ..failed };
        let late = Moments { prefill_answered_us: None, ..broken };
        for (moments, last) in [
            (failed, "first_byte 74 exact"),
            (in_prefill, "prefill 174 exact"),
            (in_queue, "queued 194.9 exact"),
            (unread, "received 200 exact"),
            (broken, "done 70 exact"),
            (late, "done 70 exact"),
        ] {
            let shown = shown(moments);
            assert_eq!(shown[shown.len() - 2], last, "{shown:?}");
            let part = last.split(' ').next().unwrap();
            assert_eq!(shown.last().unwrap(), &format!("ended in {part}"));
        }
    }

    proptest! {
        #[test]
        fn known_parts_add_up_to_the_duration_and_to_the_first_event(
            seen in proptest::collection::vec(proptest::option::of(0u64..1_000_000), 6),
            ended_us in 0u64..1_000_000,
            has_prefill: bool,
            is_forwarded: bool,
            is_whole: bool,
        ) {
            let moments = Moments {
                first_attempt_us: seen[0],
                last_attempt_us: seen[1],
                placed_us: seen[2],
                sent_us: seen[3],
                prefill_answered_us: seen[4],
                first_event_us: seen[5],
                ended_us,
                has_prefill,
                is_forwarded,
                is_whole,
            };
            let timeline = Timeline::of(&moments);
            let sum = |count| -> f64 {
                timeline.parts().take(count).filter_map(|(_, ms)| ms.value()).sum()
            };
            prop_assert!((sum(7) - ended_us as f64 / 1e3).abs() < 1e-6);
            let before = seen.iter().flatten().max().copied().unwrap_or(0);
            if let Some(first) = seen[5].filter(|first| *first == before && *first <= ended_us) {
                prop_assert!((sum(TimelinePart::OF_TTFT) - first as f64 / 1e3).abs() < 1e-6);
            }
        }
    }
}
