//! [`CounterWindow`]: how much counters grew over a short interval, for rates that react at once.

use std::collections::VecDeque;
use std::time::Duration;

/// Recent readings of `N` monotonic counters. Its size is bounded by its span and step.
#[derive(Clone, Debug)]
pub struct CounterWindow<const N: usize> {
    span: Duration,
    step: Duration,
    readings: VecDeque<(Duration, [u64; N])>,
    newest: Option<(Duration, [u64; N])>,
}

/// How much counters grew, and in which time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth<const N: usize> {
    pub deltas: [u64; N],
    pub elapsed: Duration,
}

impl<const N: usize> Growth<N> {
    /// The growth of one counter per second.
    pub fn per_second(&self, counter: usize) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.deltas[counter] as f64 / seconds } else { 0.0 }
    }
}

impl<const N: usize> CounterWindow<N> {
    /// Keeps readings for `span`, at least `step` apart: at most `span / step + 2`.
    pub fn new(span: Duration, step: Duration) -> CounterWindow<N> {
        CounterWindow { span, step, readings: VecDeque::new(), newest: None }
    }

    /// Adds a reading taken at `at`, a time of any monotonic clock. If a counter went back (a new pod
    /// with an old id), all older readings are dropped.
    pub fn push(&mut self, at: Duration, counters: [u64; N]) {
        let went_back = |(_, last): &(Duration, [u64; N])| {
            last.iter().zip(&counters).any(|(last, now)| now < last)
        };
        if self.newest.as_ref().is_some_and(went_back) {
            self.readings.clear();
        }
        let far = |(last, _): &(Duration, [u64; N])| at.saturating_sub(*last) >= self.step;
        if self.readings.back().is_none_or(far) {
            self.readings.push_back((at, counters));
        }
        while self.readings.get(1).is_some_and(|(next, _)| at.saturating_sub(*next) >= self.span) {
            self.readings.pop_front();
        }
        self.newest = Some((at, counters));
    }

    /// The last reading.
    pub fn newest(&self) -> Option<&[u64; N]> {
        self.newest.as_ref().map(|(_, counters)| counters)
    }

    /// The growth between the oldest and the newest reading.
    ///
    /// ```
    /// use std::time::Duration;
    /// use router_core::counter_window::CounterWindow;
    ///
    /// let mut window = CounterWindow::new(Duration::from_millis(200), Duration::from_millis(20));
    /// window.push(Duration::ZERO, [1_000]);
    /// window.push(Duration::from_millis(100), [2_000]);
    /// assert_eq!(window.growth().unwrap().per_second(0), 10_000.0);
    /// ```
    pub fn growth(&self) -> Option<Growth<N>> {
        let ((then, older), (now, newer)) = (self.readings.front()?, self.newest.as_ref()?);
        let mut deltas = [0; N];
        for ((delta, newer), older) in deltas.iter_mut().zip(newer).zip(older) {
            *delta = newer.saturating_sub(*older);
        }
        Some(Growth {
            deltas,
            elapsed: now.checked_sub(*then).filter(|elapsed| !elapsed.is_zero())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn readings_older_than_the_span_are_dropped() {
        let mut window = CounterWindow::new(MS * 200, MS * 20);
        for tick in 0..1_000u32 {
            // Fast at first, and unchanged for the last second.
            let count = if tick < 900 { u64::from(tick) * 100 } else { 90_000 };
            window.push(MS * 10 * tick, [count]);
        }
        assert!(window.readings.len() <= 12, "{}", window.readings.len());
        assert_eq!(window.growth().unwrap().deltas, [0]);
    }

    #[test]
    fn a_counter_that_went_back_restarts_the_window() {
        let mut window = CounterWindow::new(MS * 200, MS);
        window.push(MS, [500, 1]);
        window.push(MS * 2, [3, 2]);
        assert_eq!(window.growth(), None);
        window.push(MS * 12, [13, 2]);
        assert_eq!(window.growth().unwrap().per_second(0), 1_000.0);
    }
}
