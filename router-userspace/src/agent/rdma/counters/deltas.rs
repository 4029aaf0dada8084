//! Two readings of a device and the time between: growth, wraps, resets, rates.

use std::collections::VecDeque;
use std::time::Duration;

use super::device_counters::{COUNTER_COUNT, Counter, DeviceCounters};

/// Rates are over the last second, in steps so that readings are few.
const SPAN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);
/// What no device of these days does: 1.6 Tbit/s, in bytes a second and so in anything smaller.
const FASTEST: u128 = 200_000_000_000;
/// Growth that is believed however short the time.
const SLACK: u128 = 64 << 20;

/// What a reading said beside the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum ReadingChange {
    /// The first one.
    First,
    Unchanged,
    Advanced,
    /// Counters went back by more than a wrap: the device began anew, and nothing is known of
    /// the time between.
    Reset,
}

/// A device's counters over time.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct CounterHistory {
    last: Option<(Duration, DeviceCounters)>,
    /// What was counted since the first reading, wraps undone.
    grown: [u64; COUNTER_COUNT],
    kept: VecDeque<(Duration, [u64; COUNTER_COUNT])>,
    resets: u64,
}

impl CounterHistory {
    /// Whether nothing was read yet.
    pub(in crate::agent) fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Adds a reading made `at`; `is_narrow` names the counters of 32 bits.
    pub(in crate::agent) fn push(
        &mut self,
        at: Duration,
        counters: DeviceCounters,
        is_narrow: impl Fn(usize) -> bool,
    ) -> ReadingChange {
        let Some((then, last)) = self.last.replace((at, counters)) else {
            self.keep(at);
            return ReadingChange::First;
        };
        let most = FASTEST * at.saturating_sub(then).as_micros() / 1_000_000 + SLACK;
        let mut grown = [0; COUNTER_COUNT];
        for (index, old, new) in last.zip(&counters) {
            match growth(old, new, is_narrow(index), most) {
                Some(growth) => grown[index] = growth,
                None => {
                    self.kept.clear();
                    self.keep(at);
                    self.resets += 1;
                    return ReadingChange::Reset;
                }
            }
        }
        for (total, grown) in self.grown.iter_mut().zip(grown) {
            *total = total.wrapping_add(grown);
        }
        self.keep(at);
        if grown.iter().any(|grown| *grown > 0) {
            ReadingChange::Advanced
        } else {
            ReadingChange::Unchanged
        }
    }

    fn keep(&mut self, at: Duration) {
        let near = |(then, _): &(Duration, _)| at.saturating_sub(*then) < STEP;
        // The newest is always there: it takes the place of one that is near the one before it.
        if self.kept.len() > 1 && self.kept.get(self.kept.len() - 2).is_some_and(near) {
            self.kept.pop_back();
        }
        self.kept.push_back((at, self.grown));
        while self.kept.get(1).is_some_and(|(next, _)| at.saturating_sub(*next) >= SPAN) {
            self.kept.pop_front();
        }
    }

    /// Forgets the past for rates: what comes next has been counted over an unknown time.
    pub(in crate::agent) fn restart(&mut self, at: Duration) {
        self.kept.clear();
        self.keep(at);
    }

    /// What was counted since the first reading; `None` where the device does not count it.
    pub(in crate::agent) fn grown(&self, counter: Counter) -> Option<u64> {
        self.last.as_ref()?.1.get(counter)?;
        Some(self.grown[counter as usize])
    }

    /// Per second, over the last second; unknown until there are two readings.
    pub(in crate::agent) fn rate(&self, counter: Counter) -> Option<f64> {
        self.rate_over(counter, SPAN)
    }

    /// The same over a shorter time, or over as much of it as was read.
    pub(in crate::agent) fn rate_over(&self, counter: Counter, span: Duration) -> Option<f64> {
        self.last.as_ref()?.1.get(counter)?;
        let (now, newer) = self.kept.back()?;
        let far = |(then, _): &&(Duration, _)| now.saturating_sub(*then) >= span;
        let (then, older) = self.kept.iter().rev().find(far).or_else(|| self.kept.front())?;
        let seconds = now.saturating_sub(*then).as_secs_f64();
        let index = counter as usize;
        (seconds > 0.0).then(|| newer[index].wrapping_sub(older[index]) as f64 / seconds)
    }

    pub(in crate::agent) fn resets(&self) -> u64 {
        self.resets
    }

    /// The counters as they were last read.
    pub(in crate::agent) fn counters(&self) -> DeviceCounters {
        self.last.map(|(_, counters)| counters).unwrap_or_default()
    }
}

/// How far a counter came from `old` to `new`; `None` if no wrap explains it.
fn growth(old: u64, new: u64, narrow: bool, most: u128) -> Option<u64> {
    if new >= old {
        return Some(new - old);
    }
    let wrapped = match narrow {
        true => new.wrapping_sub(old) & u64::from(u32::MAX),
        false => new.wrapping_sub(old),
    };
    (u128::from(wrapped) <= most).then_some(wrapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tx(value: u64) -> DeviceCounters {
        let mut counters = DeviceCounters::default();
        counters.add(Counter::TxBytes, value);
        counters
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn rates_are_those_of_the_last_second() {
        let mut meter = CounterHistory::default();
        assert_eq!(meter.push(at(0), tx(1_000), |_| false), ReadingChange::First);
        assert_eq!(meter.rate(Counter::TxBytes), None, "one reading is no rate");
        for tick in 1..=200 {
            meter.push(at(tick * 20), tx(1_000 + tick * 100), |_| false);
        }
        let rate = meter.rate(Counter::TxBytes).expect("a rate");
        assert!((rate - 5_000.0).abs() < 1.0, "{rate}");
        assert!(meter.kept.len() <= 30, "{}", meter.kept.len());
        assert_eq!(meter.grown(Counter::TxBytes), Some(20_000));
        meter.push(at(4_010), tx(21_000 + 9_000), |_| false);
        let recent = meter.rate_over(Counter::TxBytes, at(100)).expect("a rate");
        assert!(recent > 60_000.0, "{recent}");
        assert_eq!(meter.rate(Counter::RxBytes), None, "not counted is not zero");
        assert_eq!(meter.push(at(4_020), tx(30_000), |_| false), ReadingChange::Unchanged);
    }

    #[test]
    fn a_wrap_goes_on_and_a_reset_begins_anew() {
        let mut meter = CounterHistory::default();
        meter.push(at(0), tx(u64::MAX - 10), |_| false);
        assert_eq!(meter.push(at(1_000), tx(89), |_| false), ReadingChange::Advanced);
        assert_eq!(meter.grown(Counter::TxBytes), Some(100));
        assert_eq!(meter.push(at(2_000), tx(12 << 40), |_| false), ReadingChange::Advanced);
        let before = meter.grown(Counter::TxBytes);
        assert_eq!(meter.push(at(3_000), tx(5), |_| false), ReadingChange::Reset);
        assert_eq!((meter.grown(Counter::TxBytes), meter.resets()), (before, 1));
        assert_eq!(meter.rate(Counter::TxBytes), None, "nothing is known across a reset");
        assert_eq!(meter.push(at(4_000), tx(55), |_| false), ReadingChange::Advanced);
        assert_eq!(meter.rate(Counter::TxBytes), Some(50.0));
    }

    #[test]
    fn a_counter_of_32_bits_wraps_there() {
        let near = u64::from(u32::MAX) - 4;
        let (mut narrow, mut wide) = (CounterHistory::default(), CounterHistory::default());
        narrow.push(at(0), tx(near), |_| true);
        assert_eq!(narrow.push(at(100), tx(5), |_| true), ReadingChange::Advanced);
        assert_eq!(narrow.grown(Counter::TxBytes), Some(10));
        wide.push(at(0), tx(near), |_| false);
        assert_eq!(wide.push(at(100), tx(5), |_| false), ReadingChange::Reset);
    }

    #[test]
    fn a_restart_hides_a_jump_from_the_rates_and_not_from_the_sum() {
        let mut meter = CounterHistory::default();
        meter.push(at(0), tx(0), |_| false);
        meter.push(at(100), tx(1 << 40), |_| false);
        meter.restart(at(100));
        meter.push(at(1_100), tx((1 << 40) + 300), |_| false);
        assert_eq!(meter.rate(Counter::TxBytes), Some(300.0));
        assert_eq!(meter.grown(Counter::TxBytes), Some((1 << 40) + 300));
    }
}
