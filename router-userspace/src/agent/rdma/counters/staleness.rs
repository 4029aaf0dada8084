//! [`StalenessDetector`]: whether counters that do not advance are idle or stale.
//!
//! Most drivers ask the device on every read. The driver of erdma's installer may return what its
//! last `STAT_DEV` stored. Such counters are trusted once they advanced on a read alone, or once
//! they stayed unchanged although they were refreshed.

use std::time::Duration;

use serde::Serialize;

use super::deltas::ReadingChange;

/// Consecutive readings that must advance to prove that a read refreshes the counters. A single
/// advance could come from an `eadm stat` of another process.
const READ_PROOF: u32 = 3;
/// Consecutive refreshed readings that must stay unchanged to prove that the device is idle.
const IDLE_PROOF: u32 = 3;
/// Pieces of evidence of activity that make unchanged counters stale.
const STALE_EVIDENCE: u32 = 2;
/// Time over which likely evidence must be seen: a control message precedes its transfer by far.
const LIKELY_SPAN: Duration = Duration::from_secs(5);

/// Whether a device's counters are up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum Freshness {
    /// There are fewer than two readings.
    Unread,
    /// The counters advance.
    Moving,
    /// The counters do not advance, and the device is idle.
    Idle,
    /// The counters do not advance, and it is unknown whether the device is idle.
    Unproven,
    /// The counters do not advance although queue pairs are active.
    Stale,
}

/// Evidence that queue pairs are active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum ActivityEvidence {
    /// A queue pair's sequence numbers advanced.
    Certain,
    /// A pod that has queue pairs on the device exchanged KV control messages.
    Likely,
}

/// Observations of one port's counters.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct StalenessDetector {
    /// Whether a read alone may return stale counters.
    pub(in crate::agent) may_be_stale: bool,
    has_two: bool,
    moved_by_reading: bool,
    moves: u32,
    unchanged_since: Option<Duration>,
    refreshed_unchanged: u32,
    certain: u32,
    likely: u32,
    likely_since: Option<Duration>,
    likely_last: Option<Duration>,
}

impl StalenessDetector {
    /// Records a reading, and whether the driver refreshed the counters before it.
    pub(in crate::agent) fn on_reading(
        &mut self,
        at: Duration,
        change: ReadingChange,
        refreshed: bool,
    ) {
        match change {
            ReadingChange::First | ReadingChange::Reset => {
                self.has_two = false;
                self.reset();
            }
            ReadingChange::Advanced => {
                self.has_two = true;
                self.reset();
                self.moves = if refreshed { 0 } else { self.moves + 1 };
                self.moved_by_reading |= self.moves >= READ_PROOF;
            }
            ReadingChange::Unchanged => {
                self.has_two = true;
                self.moves = 0;
                self.unchanged_since.get_or_insert(at);
                self.refreshed_unchanged += u32::from(refreshed);
            }
        }
    }

    fn reset(&mut self) {
        self.unchanged_since = None;
        (self.refreshed_unchanged, self.certain, self.likely) = (0, 0, 0);
        (self.likely_since, self.likely_last) = (None, None);
    }

    /// Records activity since the last scan. It is evidence only while the counters do not advance.
    pub(in crate::agent) fn on_activity(&mut self, at: Duration, evidence: ActivityEvidence) {
        if self.unchanged_since.is_none() {
            return;
        }
        match evidence {
            ActivityEvidence::Certain => self.certain += 1,
            ActivityEvidence::Likely => {
                self.likely += 1;
                self.likely_since.get_or_insert(at);
                self.likely_last = Some(at);
            }
        }
    }

    /// Whether the driver must refresh the counters before a read.
    pub(in crate::agent) fn wants_refresh(&self) -> bool {
        self.may_be_stale && !self.moved_by_reading
    }

    /// The verdict; `is_in_use` if any queue pair of the device is active.
    pub(in crate::agent) fn verdict(&self, is_in_use: bool) -> Freshness {
        if !self.has_two {
            return Freshness::Unread;
        }
        if self.unchanged_since.is_none() {
            return Freshness::Moving;
        }
        if !is_in_use {
            return Freshness::Idle;
        }
        if self.certain >= STALE_EVIDENCE {
            return Freshness::Stale;
        }
        if !self.wants_refresh() || self.refreshed_unchanged >= IDLE_PROOF {
            return Freshness::Idle;
        }
        let span = self.likely_last.zip(self.likely_since).map(|(last, first)| last - first);
        let is_likely =
            self.likely >= STALE_EVIDENCE && span.is_some_and(|span| span >= LIKELY_SPAN);
        if is_likely { Freshness::Stale } else { Freshness::Unproven }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A detector that has two readings, the second one unchanged.
    fn unchanged(may_be_stale: bool) -> StalenessDetector {
        let mut detector = StalenessDetector { may_be_stale, ..StalenessDetector::default() };
        assert_eq!(detector.verdict(true), Freshness::Unread);
        detector.on_reading(at(0), ReadingChange::First, false);
        assert_eq!(detector.verdict(true), Freshness::Unread);
        detector.on_reading(at(1), ReadingChange::Unchanged, false);
        detector
    }

    #[test]
    fn a_driver_that_asks_the_device_is_idle_if_unchanged() {
        let mut detector = unchanged(false);
        assert_eq!(detector.verdict(true), Freshness::Idle);
        for second in 2..20 {
            detector.on_activity(at(second), ActivityEvidence::Likely);
        }
        assert_eq!(detector.verdict(true), Freshness::Idle, "a control message is no transfer");
    }

    #[test]
    fn unchanged_counters_under_activity_are_stale_until_they_advance() {
        let mut detector = unchanged(false);
        detector.on_activity(at(2), ActivityEvidence::Certain);
        assert_eq!(detector.verdict(true), Freshness::Idle, "the activity may precede the reading");
        detector.on_activity(at(3), ActivityEvidence::Certain);
        assert_eq!(detector.verdict(true), Freshness::Stale);
        detector.on_reading(at(4), ReadingChange::Advanced, false);
        assert_eq!(detector.verdict(true), Freshness::Moving);
        detector.on_reading(at(5), ReadingChange::Unchanged, false);
        assert_eq!(detector.verdict(true), Freshness::Idle);
    }

    #[test]
    fn counters_of_the_installers_driver_are_proven_by_reads_or_by_a_refresh() {
        let mut detector = unchanged(true);
        assert!(detector.wants_refresh());
        assert_eq!(detector.verdict(true), Freshness::Unproven);
        assert_eq!(detector.verdict(false), Freshness::Idle, "no traffic without queue pairs");
        for second in 2..5 {
            detector.on_reading(at(second), ReadingChange::Unchanged, true);
        }
        assert_eq!(detector.verdict(true), Freshness::Idle, "refreshed, and unchanged");
        // One advance may come from an `eadm stat`; three in a row come from the driver.
        detector.on_reading(at(6), ReadingChange::Advanced, false);
        detector.on_reading(at(7), ReadingChange::Unchanged, false);
        assert_eq!(detector.verdict(true), Freshness::Unproven);
        for second in 8..11 {
            detector.on_reading(at(second), ReadingChange::Advanced, false);
        }
        assert!(!detector.wants_refresh());
        detector.on_reading(at(12), ReadingChange::Unchanged, false);
        assert_eq!(detector.verdict(true), Freshness::Idle);
    }

    #[test]
    fn control_messages_for_seconds_make_unproven_counters_stale() {
        let mut detector = unchanged(true);
        detector.on_activity(at(2), ActivityEvidence::Likely);
        detector.on_activity(at(3), ActivityEvidence::Likely);
        assert_eq!(detector.verdict(true), Freshness::Unproven);
        detector.on_activity(at(8), ActivityEvidence::Likely);
        assert_eq!(detector.verdict(true), Freshness::Stale);
    }

    #[test]
    fn a_reset_needs_two_new_readings() {
        let mut detector = unchanged(false);
        detector.on_reading(at(2), ReadingChange::Advanced, false);
        detector.on_reading(at(3), ReadingChange::Reset, false);
        assert_eq!(detector.verdict(true), Freshness::Unread);
    }
}
