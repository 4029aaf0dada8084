//! [`AgentClock`]: how far the clock of an agent is from the gateway's, with a bound of the error.
//!
//! An agent answers with its clock. It read that clock between the sending of the request and the arrival of
//! the answer, so each round trip gives an interval that holds the offset; several give a smaller one.

use std::collections::VecDeque;

use crate::rooms::ClockOffset;

/// Number of round trips that are kept.
const MAX_ROUND_TRIPS: usize = 16;
/// Age at which a round trip is not used any more.
const MAX_AGE_US: u64 = 30_000_000;
/// How much two clocks may drift apart, in parts of a million: 100 each, as crystals do. While NTP slews a
/// clock by more, round trips contradict each other, and the older ones are dropped.
const DRIFT_PPM: u64 = 200;

#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    at_us: u64,
    low_us: i64,
    high_us: i64,
}

impl RoundTrip {
    /// The interval as of `now_us`: it grows as the clocks may drift.
    fn at(&self, now_us: u64) -> (i64, i64) {
        let drift = signed(now_us.saturating_sub(self.at_us) * DRIFT_PPM / 1_000_000);
        (self.low_us - drift, self.high_us + drift)
    }
}

/// The latest comparisons with the clock of one agent process.
#[derive(Debug, Default)]
pub(super) struct AgentClock {
    instance: u64,
    samples: VecDeque<RoundTrip>,
}

impl AgentClock {
    /// Adds a round trip: `agent_us` was the agent's clock some time from `sent_us` to `received_us`.
    pub(super) fn observe(&mut self, instance: u64, agent_us: u64, sent_us: u64, received_us: u64) {
        if instance != self.instance {
            *self = AgentClock { instance, ..AgentClock::default() };
        }
        let agent = signed(agent_us);
        // The agent's clock has whole microseconds.
        let (low_us, high_us) = (signed(sent_us) - agent - 1, signed(received_us) - agent + 1);
        let sample = RoundTrip { at_us: received_us, low_us, high_us };
        if self.offset(instance, received_us).is_some_and(|offset| {
            let (error, offset) = (i64::from(offset.error_us), offset.offset_us);
            offset + error < low_us || offset - error > high_us
        }) {
            self.samples.clear();
        }
        if self.samples.len() == MAX_ROUND_TRIPS {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The offset of the agent process `instance`; `None` while it is not known.
    pub(super) fn offset(&self, instance: u64, now_us: u64) -> Option<ClockOffset> {
        if instance != self.instance {
            return None;
        }
        let is_new = |sample: &&RoundTrip| now_us.saturating_sub(sample.at_us) <= MAX_AGE_US;
        let intervals = self.samples.iter().filter(is_new).map(|sample| sample.at(now_us));
        let (low, high) =
            intervals.reduce(|(low, high), (from, to)| (low.max(from), high.min(to)))?;
        let error_us = u32::try_from((high - low + 1) / 2).ok()?;
        Some(ClockOffset { offset_us: low + (high - low) / 2, error_us })
    }
}

fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gateway's clock is ahead of the agent's by this much.
    const AHEAD: i64 = 5_000_000;

    fn agent_at(gateway_us: u64) -> u64 {
        gateway_us.checked_add_signed(-AHEAD).unwrap()
    }

    #[test]
    fn the_offset_is_within_its_bound_however_a_round_trip_is_divided() {
        for (there, back) in [(10, 990), (500, 500), (990, 10)] {
            let mut clock = AgentClock::default();
            let sent = 9_000_000;
            clock.observe(7, agent_at(sent + there), sent, sent + there + back);
            let offset = clock.offset(7, sent + 1_000).unwrap();
            assert!((offset.offset_us - AHEAD).abs() <= i64::from(offset.error_us), "{offset:?}");
            assert!((500..=502).contains(&offset.error_us), "{offset:?}");
        }
    }

    #[test]
    fn several_round_trips_narrow_it_and_time_widens_it() {
        let mut clock = AgentClock::default();
        assert_eq!(clock.offset(0, 1), None);
        for (second, (there, back)) in [(1, 9_000), (9_000, 100), (40, 60)].into_iter().enumerate()
        {
            let sent = 9_000_000 + second as u64 * 1_000_000;
            clock.observe(7, agent_at(sent + there), sent, sent + there + back);
        }
        let now = clock.offset(7, 11_000_100).unwrap();
        assert!(now.error_us <= 52 && (now.offset_us - AHEAD).abs() <= 52, "{now:?}");
        let later = clock.offset(7, 21_000_100).unwrap();
        assert!((2_000..2_100).contains(&later.error_us), "{later:?}");
        assert_eq!(clock.offset(7, 60_000_000), None, "all round trips are old");
    }

    #[test]
    fn another_process_and_a_clock_that_jumped_start_over() {
        let mut clock = AgentClock::default();
        clock.observe(7, agent_at(9_000_050), 9_000_000, 9_000_100);
        assert_eq!(clock.offset(8, 9_000_100), None);
        // The agent's clock is suddenly a second ahead of where it was.
        clock.observe(7, agent_at(11_000_050), 10_000_000, 10_000_100);
        let offset = clock.offset(7, 10_000_100).unwrap();
        assert!((offset.offset_us - (AHEAD - 1_000_000)).abs() <= 52, "{offset:?}");
        clock.observe(8, 50, 12_000_000, 12_000_100);
        assert_eq!(clock.offset(7, 12_000_100), None);
        assert!((clock.offset(8, 12_000_100).unwrap().offset_us - 12_000_000).abs() <= 52);
    }
}
