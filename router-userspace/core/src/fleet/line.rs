//! [`Line`]: the prompts that a prefill was sent, in order, and for how long the first is at work.

use std::collections::VecDeque;

use serde::Serialize;

/// The prompt that a prefill computes now, as far as one gateway can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Head {
    /// Its work in bytes of uncached prompt.
    pub work_bytes: f32,
    /// Since the one before it was done, or since it came to an idle worker.
    pub busy_ms: f32,
}

/// One gateway's prompts at one prefill. As long as the leases on the worker are many.
#[derive(Clone, Debug, Default)]
pub struct Line {
    jobs: VecDeque<(u64, f32)>,
    since_ms: u64,
    tickets: u64,
}

impl Line {
    /// A prompt was sent; the answer is the ticket to leave with.
    ///
    /// ```
    /// use router_core::fleet::Line;
    ///
    /// let mut line = Line::default();
    /// let first = line.join(9000.0, 0);
    /// line.join(500.0, 10);
    /// assert_eq!((line.head(40).work_bytes, line.head(40).busy_ms), (9000.0, 40.0));
    /// line.leave(first, 50);
    /// assert_eq!((line.head(60).work_bytes, line.head(60).busy_ms), (500.0, 10.0));
    /// ```
    pub fn join(&mut self, work_bytes: f32, now_ms: u64) -> u64 {
        if self.jobs.is_empty() {
            self.since_ms = now_ms;
        }
        self.tickets += 1;
        self.jobs.push_back((self.tickets, work_bytes));
        self.tickets
    }

    /// The prompt was computed, or given up. The next one is at work from now on where it was
    /// the first.
    pub fn leave(&mut self, ticket: u64, now_ms: u64) {
        let Some(at) = self.jobs.iter().position(|job| job.0 == ticket) else { return };
        self.jobs.remove(at);
        if at == 0 {
            self.since_ms = now_ms;
        }
    }

    /// The first prompt; nothing of nothing where the line is empty.
    pub fn head(&self, now_ms: u64) -> Head {
        let Some(&(_, work_bytes)) = self.jobs.front() else { return Head::default() };
        Head { work_bytes, busy_ms: now_ms.saturating_sub(self.since_ms) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_out_of_turn_does_not_reset_the_clock() {
        let mut line = Line::default();
        let first = line.join(10.0, 100);
        let second = line.join(20.0, 110);
        line.leave(second, 150);
        assert_eq!(line.head(160), Head { work_bytes: 10.0, busy_ms: 60.0 });
        line.leave(first, 170);
        line.leave(first, 180);
        assert_eq!(line.head(200), Head::default());
        line.join(30.0, 300);
        assert_eq!(line.head(290).busy_ms, 0.0, "a clock that lags says nothing");
    }
}
