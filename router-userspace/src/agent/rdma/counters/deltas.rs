//! [`CounterHistory`]: a device's readings over time, as deltas and rates, across wraps and resets.

use std::collections::VecDeque;
use std::time::Duration;

use super::device_counters::{COUNTER_COUNT, Counter, DeviceCounters};

/// Rates are averages over the last second. Readings are kept in steps, which bounds their number.
const SPAN: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);
/// A rate that no current device reaches: 1.6 Tbit/s in bytes per second. Larger deltas are resets.
const MAX_RATE: u128 = 200_000_000_000;
/// A delta that is plausible after any time.
const SLACK: u128 = 64 << 20;

/// How a reading differs from the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum ReadingChange {
    /// There is no previous reading.
    First,
    Unchanged,
    Advanced,
    /// A counter went back by more than a wrap: the device was reset, and the delta is unknown.
    Reset,
}

/// A device's counters over time.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct CounterHistory {
    last: Option<(Duration, DeviceCounters)>,
    /// The sum of all deltas since the first reading.
    totals: [u64; COUNTER_COUNT],
    readings: VecDeque<(Duration, [u64; COUNTER_COUNT])>,
    resets: u64,
}

impl CounterHistory {
    /// Whether there was no reading yet.
    pub(in crate::agent) fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// Adds a reading taken at `at`. `is_32_bit` returns whether a counter wraps at 32 bits.
    pub(in crate::agent) fn push(
        &mut self,
        at: Duration,
        counters: DeviceCounters,
        is_32_bit: impl Fn(usize) -> bool,
    ) -> ReadingChange {
        let Some((then, last)) = self.last.replace((at, counters)) else {
            self.keep(at);
            return ReadingChange::First;
        };
        let max = MAX_RATE * at.saturating_sub(then).as_micros() / 1_000_000 + SLACK;
        let mut deltas = [0; COUNTER_COUNT];
        for (index, old, new) in last.zip(&counters) {
            match delta(old, new, is_32_bit(index), max) {
                Some(delta) => deltas[index] = delta,
                None => {
                    self.readings.clear();
                    self.keep(at);
                    self.resets += 1;
                    return ReadingChange::Reset;
                }
            }
        }
        for (total, delta) in self.totals.iter_mut().zip(deltas) {
            *total = total.wrapping_add(delta);
        }
        self.keep(at);
        if deltas.iter().any(|delta| *delta > 0) {
            ReadingChange::Advanced
        } else {
            ReadingChange::Unchanged
        }
    }

    fn keep(&mut self, at: Duration) {
        let near = |(then, _): &(Duration, _)| at.saturating_sub(*then) < STEP;
        // The newest reading is always kept: it replaces the last one if that is less than a step old.
        if self.readings.len() > 1 && self.readings.get(self.readings.len() - 2).is_some_and(near) {
            self.readings.pop_back();
        }
        self.readings.push_back((at, self.totals));
        while self.readings.get(1).is_some_and(|(next, _)| at.saturating_sub(*next) >= SPAN) {
            self.readings.pop_front();
        }
    }

    /// Restarts the rates at `at`: the last delta was counted over an unknown time.
    pub(in crate::agent) fn restart(&mut self, at: Duration) {
        self.readings.clear();
        self.keep(at);
    }

    /// The sum of all deltas since the first reading; `None` if the device does not count it.
    pub(in crate::agent) fn total(&self, counter: Counter) -> Option<u64> {
        self.last.as_ref()?.1.get(counter)?;
        Some(self.totals[counter as usize])
    }

    /// The rate per second over the last second; `None` before the second reading.
    pub(in crate::agent) fn rate(&self, counter: Counter) -> Option<f64> {
        self.rate_over(counter, SPAN)
    }

    /// The rate per second over `span`, or over the time since the first reading if that is shorter.
    pub(in crate::agent) fn rate_over(&self, counter: Counter, span: Duration) -> Option<f64> {
        self.last.as_ref()?.1.get(counter)?;
        let (now, newer) = self.readings.back()?;
        let far = |(then, _): &&(Duration, _)| now.saturating_sub(*then) >= span;
        let (then, older) =
            self.readings.iter().rev().find(far).or_else(|| self.readings.front())?;
        let seconds = now.saturating_sub(*then).as_secs_f64();
        let index = counter as usize;
        (seconds > 0.0).then(|| newer[index].wrapping_sub(older[index]) as f64 / seconds)
    }

    pub(in crate::agent) fn resets(&self) -> u64 {
        self.resets
    }

    /// The last reading.
    pub(in crate::agent) fn counters(&self) -> DeviceCounters {
        self.last.map(|(_, counters)| counters).unwrap_or_default()
    }
}

/// The delta from `old` to `new`; `None` if a wrap does not explain a decrease.
fn delta(old: u64, new: u64, is_32_bit: bool, max: u128) -> Option<u64> {
    if new >= old {
        return Some(new - old);
    }
    let wrapped = match is_32_bit {
        true => new.wrapping_sub(old) & u64::from(u32::MAX),
        false => new.wrapping_sub(old),
    };
    (u128::from(wrapped) <= max).then_some(wrapped)
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
    fn rates_are_averages_over_the_last_second() {
        let mut history = CounterHistory::default();
        assert_eq!(history.push(at(0), tx(1_000), |_| false), ReadingChange::First);
        assert_eq!(history.rate(Counter::TxBytes), None, "one reading is no rate");
        for tick in 1..=200 {
            history.push(at(tick * 20), tx(1_000 + tick * 100), |_| false);
        }
        let rate = history.rate(Counter::TxBytes).expect("a rate");
        assert!((rate - 5_000.0).abs() < 1.0, "{rate}");
        assert!(history.readings.len() <= 30, "{}", history.readings.len());
        assert_eq!(history.total(Counter::TxBytes), Some(20_000));
        history.push(at(4_010), tx(21_000 + 9_000), |_| false);
        let recent = history.rate_over(Counter::TxBytes, at(100)).expect("a rate");
        assert!(recent > 60_000.0, "{recent}");
        assert_eq!(history.rate(Counter::RxBytes), None, "not counted is not zero");
        assert_eq!(history.push(at(4_020), tx(30_000), |_| false), ReadingChange::Unchanged);
    }

    #[test]
    fn a_wrap_continues_and_a_reset_restarts_the_rates() {
        let mut history = CounterHistory::default();
        history.push(at(0), tx(u64::MAX - 10), |_| false);
        assert_eq!(history.push(at(1_000), tx(89), |_| false), ReadingChange::Advanced);
        assert_eq!(history.total(Counter::TxBytes), Some(100));
        assert_eq!(history.push(at(2_000), tx(12 << 40), |_| false), ReadingChange::Advanced);
        let before = history.total(Counter::TxBytes);
        assert_eq!(history.push(at(3_000), tx(5), |_| false), ReadingChange::Reset);
        assert_eq!((history.total(Counter::TxBytes), history.resets()), (before, 1));
        assert_eq!(history.rate(Counter::TxBytes), None, "nothing is known across a reset");
        assert_eq!(history.push(at(4_000), tx(55), |_| false), ReadingChange::Advanced);
        assert_eq!(history.rate(Counter::TxBytes), Some(50.0));
    }

    #[test]
    fn a_32_bit_counter_wraps_at_32_bits() {
        let near = u64::from(u32::MAX) - 4;
        let (mut narrow, mut wide) = (CounterHistory::default(), CounterHistory::default());
        narrow.push(at(0), tx(near), |_| true);
        assert_eq!(narrow.push(at(100), tx(5), |_| true), ReadingChange::Advanced);
        assert_eq!(narrow.total(Counter::TxBytes), Some(10));
        wide.push(at(0), tx(near), |_| false);
        assert_eq!(wide.push(at(100), tx(5), |_| false), ReadingChange::Reset);
    }

    #[test]
    fn a_restart_excludes_a_jump_from_rates_but_not_from_totals() {
        let mut history = CounterHistory::default();
        history.push(at(0), tx(0), |_| false);
        history.push(at(100), tx(1 << 40), |_| false);
        history.restart(at(100));
        history.push(at(1_100), tx((1 << 40) + 300), |_| false);
        assert_eq!(history.rate(Counter::TxBytes), Some(300.0));
        assert_eq!(history.total(Counter::TxBytes), Some((1 << 40) + 300));
    }
}
