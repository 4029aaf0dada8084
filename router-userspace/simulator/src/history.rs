//! [`History`]: the recent values of a quantity. Observers of the model read only past values.

use std::collections::VecDeque;

/// Changes within one tick are merged: an agent sends one frame per tick.
pub(crate) const TICK_MS: f64 = 10.0;
/// Maximum age of a value that is read.
const MAX_AGE_MS: f64 = 11_000.0;

/// A value at the end of each tick in which it changed.
#[derive(Debug, Default)]
pub(crate) struct History<T> {
    values: VecDeque<(u64, T)>,
}

impl<T: Copy + Default> History<T> {
    pub(crate) fn set(&mut self, now: f64, value: T) {
        let tick = (now / TICK_MS) as u64;
        match self.values.back_mut() {
            Some(last) if last.0 == tick => last.1 = value,
            _ => self.values.push_back((tick, value)),
        }
        let kept = tick.saturating_sub((MAX_AGE_MS / TICK_MS) as u64);
        while self.values.get(1).is_some_and(|second| second.0 < kept) {
            self.values.pop_front();
        }
    }

    /// Returns the value of the last frame as of `age` ms ago.
    pub(crate) fn before(&self, now: f64, age: f64) -> T {
        let tick = ((now - age).max(0.0) / TICK_MS) as u64;
        let after = self.values.partition_point(|(at, _)| *at < tick);
        after.checked_sub(1).map_or(T::default(), |at| self.values[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_shows_complete_ticks_and_nothing_younger_than_its_age() {
        let mut history = History::default();
        history.set(5.0, 1);
        history.set(8.0, 2);
        history.set(31.0, 3);
        assert_eq!(history.before(9.0, 0.0), 0, "the tick is not over");
        assert_eq!(history.before(30.0, 10.0), 2);
        assert_eq!(history.before(45.0, 10.0), 2);
        assert_eq!(history.before(50.0, 10.0), 3);
    }
}
