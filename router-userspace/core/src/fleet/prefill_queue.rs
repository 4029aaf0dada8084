//! [`PrefillQueue`]: the prompts that a prefill was sent, in order, and for how long the first is at work.

use std::collections::VecDeque;

use serde::Serialize;

/// The prompt that a prefill computes now, as far as one gateway can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct QueueHead {
    /// Its work in bytes of uncached prompt.
    pub work_bytes: f32,
    /// Since the one before it was done, or since it came to an idle worker.
    pub busy_ms: f32,
}

/// One gateway's prompts at one prefill. As long as the leases on the worker are many.
#[derive(Clone, Debug, Default)]
pub struct PrefillQueue {
    jobs: VecDeque<(u64, f32)>,
    since_ms: u64,
    tickets: u64,
}

impl PrefillQueue {
    /// A prompt was sent; the answer is the ticket to leave with.
    ///
    /// ```
    /// use router_core::fleet::PrefillQueue;
    ///
    /// let mut queue = PrefillQueue::default();
    /// let first = queue.push(9000.0, 0);
    /// queue.push(500.0, 10);
    /// assert_eq!((queue.head(40).work_bytes, queue.head(40).busy_ms), (9000.0, 40.0));
    /// queue.remove(first, 50);
    /// assert_eq!((queue.head(60).work_bytes, queue.head(60).busy_ms), (500.0, 10.0));
    /// ```
    pub fn push(&mut self, work_bytes: f32, now_ms: u64) -> u64 {
        if self.jobs.is_empty() {
            self.since_ms = now_ms;
        }
        self.tickets += 1;
        self.jobs.push_back((self.tickets, work_bytes));
        self.tickets
    }

    /// The prompt was computed, or given up. The next one is at work from now on where it was
    /// the first.
    pub fn remove(&mut self, ticket: u64, now_ms: u64) {
        let Some(at) = self.jobs.iter().position(|job| job.0 == ticket) else { return };
        self.jobs.remove(at);
        if at == 0 {
            self.since_ms = now_ms;
        }
    }

    /// The first prompt; nothing of nothing where the line is empty.
    pub fn head(&self, now_ms: u64) -> QueueHead {
        let Some(&(_, work_bytes)) = self.jobs.front() else { return QueueHead::default() };
        QueueHead { work_bytes, busy_ms: now_ms.saturating_sub(self.since_ms) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_out_of_turn_does_not_reset_the_clock() {
        let mut queue = PrefillQueue::default();
        let first = queue.push(10.0, 100);
        let second = queue.push(20.0, 110);
        queue.remove(second, 150);
        assert_eq!(queue.head(160), QueueHead { work_bytes: 10.0, busy_ms: 60.0 });
        queue.remove(first, 170);
        queue.remove(first, 180);
        assert_eq!(queue.head(200), QueueHead::default());
        queue.push(30.0, 300);
        assert_eq!(queue.head(290).busy_ms, 0.0, "a clock that lags says nothing");
    }
}
