//! Whether a device's counters can be believed when they stand still.
//!
//! Most drivers ask the device at every read. The driver that erdma's installer brings may hand
//! out what its last `STAT_DEV` left there: such counters are believed once they were seen to move
//! by reading alone, or to stand still although they were refreshed.

use std::time::Duration;

use serde::Serialize;

use super::deltas::ReadingChange;

/// Readings in a row that must move before reading alone is known to refresh: one could be the
/// doing of somebody's `eadm stat`.
const PROOF: u32 = 3;
/// Refreshed readings in a row that must stand still before idle is believed.
const IDLE_PROOF: u32 = 3;
/// Sightings of work that make a counter that stands still a stale one, and for how long the
/// weaker kind must be seen: a control message comes long before its transfer.
const SIGHTINGS: u32 = 2;
const LIKELY_FOR: Duration = Duration::from_secs(5);

/// What standing still means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::agent) enum Freshness {
    /// Not read yet, or not twice.
    Unread,
    Moving,
    /// Nothing moves, and that is believed.
    Idle,
    /// Nothing moves, and nothing shows whether that is so.
    Unproven,
    /// Nothing moves although queue pairs work.
    Stale,
}

/// A sign that queue pairs work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum ActivityEvidence {
    /// A queue pair's sequence numbers moved.
    Sure,
    /// A pod that has queue pairs on the device was sent KV control messages.
    Likely,
}

/// What was seen of a device's counters.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct StalenessDetector {
    /// Reading alone may not refresh them.
    pub(in crate::agent) may_stand_still: bool,
    has_two: bool,
    moved_by_reading: bool,
    moves: u32,
    still_since: Option<Duration>,
    refreshed_still: u32,
    sure: u32,
    likely: u32,
    likely_since: Option<Duration>,
    likely_last: Option<Duration>,
}

impl StalenessDetector {
    /// Counters were read, after a refresh or not.
    pub(in crate::agent) fn read(&mut self, at: Duration, change: ReadingChange, refreshed: bool) {
        match change {
            ReadingChange::First | ReadingChange::Reset => {
                self.has_two = false;
                self.forget();
            }
            ReadingChange::Advanced => {
                self.has_two = true;
                self.forget();
                self.moves = if refreshed { 0 } else { self.moves + 1 };
                self.moved_by_reading |= self.moves >= PROOF;
            }
            ReadingChange::Unchanged => {
                self.has_two = true;
                self.moves = 0;
                self.still_since.get_or_insert(at);
                self.refreshed_still += u32::from(refreshed);
            }
        }
    }

    fn forget(&mut self) {
        self.still_since = None;
        (self.refreshed_still, self.sure, self.likely) = (0, 0, 0);
        (self.likely_since, self.likely_last) = (None, None);
    }

    /// Work was seen since the last look; it counts against counters that stood still then.
    pub(in crate::agent) fn worked(&mut self, at: Duration, work: ActivityEvidence) {
        if self.still_since.is_none() {
            return;
        }
        match work {
            ActivityEvidence::Sure => self.sure += 1,
            ActivityEvidence::Likely => {
                self.likely += 1;
                self.likely_since.get_or_insert(at);
                self.likely_last = Some(at);
            }
        }
    }

    /// Whether a refresh would tell something: reading alone is not known to be enough.
    pub(in crate::agent) fn wants_refresh(&self) -> bool {
        self.may_stand_still && !self.moved_by_reading
    }

    /// What it looks like; `is_held` if any queue pair could move something.
    pub(in crate::agent) fn verdict(&self, is_held: bool) -> Freshness {
        if !self.has_two {
            return Freshness::Unread;
        }
        if self.still_since.is_none() {
            return Freshness::Moving;
        }
        if !is_held {
            return Freshness::Idle;
        }
        if self.sure >= SIGHTINGS {
            return Freshness::Stale;
        }
        if !self.wants_refresh() || self.refreshed_still >= IDLE_PROOF {
            return Freshness::Idle;
        }
        let span = self.likely_last.zip(self.likely_since).map(|(last, first)| last - first);
        let is_likely = self.likely >= SIGHTINGS && span.is_some_and(|span| span >= LIKELY_FOR);
        if is_likely { Freshness::Stale } else { Freshness::Unproven }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A watch that has two readings, the second one still.
    fn still(may_stand_still: bool) -> StalenessDetector {
        let mut watch = StalenessDetector { may_stand_still, ..StalenessDetector::default() };
        assert_eq!(watch.verdict(true), Freshness::Unread);
        watch.read(at(0), ReadingChange::First, false);
        assert_eq!(watch.verdict(true), Freshness::Unread);
        watch.read(at(1), ReadingChange::Unchanged, false);
        watch
    }

    #[test]
    fn a_driver_that_asks_the_device_is_believed_to_be_idle() {
        let mut watch = still(false);
        assert_eq!(watch.verdict(true), Freshness::Idle);
        for second in 2..20 {
            watch.worked(at(second), ActivityEvidence::Likely);
        }
        assert_eq!(watch.verdict(true), Freshness::Idle, "a control message is no transfer");
    }

    #[test]
    fn counters_that_stand_still_under_work_are_stale_until_they_move() {
        let mut watch = still(false);
        watch.worked(at(2), ActivityEvidence::Sure);
        assert_eq!(watch.verdict(true), Freshness::Idle, "it may have been before the reading");
        watch.worked(at(3), ActivityEvidence::Sure);
        assert_eq!(watch.verdict(true), Freshness::Stale);
        watch.read(at(4), ReadingChange::Advanced, false);
        assert_eq!(watch.verdict(true), Freshness::Moving);
        watch.read(at(5), ReadingChange::Unchanged, false);
        assert_eq!(watch.verdict(true), Freshness::Idle);
    }

    #[test]
    fn the_installers_counters_are_proven_by_moving_or_by_a_refresh() {
        let mut watch = still(true);
        assert!(watch.wants_refresh());
        assert_eq!(watch.verdict(true), Freshness::Unproven);
        assert_eq!(watch.verdict(false), Freshness::Idle, "without queue pairs nothing can move");
        for second in 2..5 {
            watch.read(at(second), ReadingChange::Unchanged, true);
        }
        assert_eq!(watch.verdict(true), Freshness::Idle, "refreshed, and still");
        // One move may be somebody's eadm; three in a row are the driver's.
        watch.read(at(6), ReadingChange::Advanced, false);
        watch.read(at(7), ReadingChange::Unchanged, false);
        assert_eq!(watch.verdict(true), Freshness::Unproven);
        for second in 8..11 {
            watch.read(at(second), ReadingChange::Advanced, false);
        }
        assert!(!watch.wants_refresh());
        watch.read(at(12), ReadingChange::Unchanged, false);
        assert_eq!(watch.verdict(true), Freshness::Idle);
    }

    #[test]
    fn control_messages_for_seconds_make_unproven_counters_stale() {
        let mut watch = still(true);
        watch.worked(at(2), ActivityEvidence::Likely);
        watch.worked(at(3), ActivityEvidence::Likely);
        assert_eq!(watch.verdict(true), Freshness::Unproven);
        watch.worked(at(8), ActivityEvidence::Likely);
        assert_eq!(watch.verdict(true), Freshness::Stale);
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut watch = still(false);
        watch.read(at(2), ReadingChange::Advanced, false);
        watch.read(at(3), ReadingChange::Reset, false);
        assert_eq!(watch.verdict(true), Freshness::Unread);
    }
}
