//! [`PrefillQueue`]: the prompts sent to one prefill, and how long the first has been running.

use std::collections::VecDeque;

use serde::Serialize;

/// The prompt that a prefill computes now, as estimated by one gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct QueueHead {
    /// Work of the prompt in bytes of uncached prompt.
    pub work_bytes: f32,
    /// Time since the prompt before it ended, or since it arrived at an idle worker.
    pub busy_ms: f32,
}

/// One gateway's prompts at one prefill, in order. Bounded by the leases on the worker.
#[derive(Clone, Debug, Default)]
pub struct PrefillQueue {
    jobs: VecDeque<(u64, f32)>,
    since_ms: u64,
    tickets: u64,
}

impl PrefillQueue {
    /// Adds a prompt that was sent. Returns the ticket for [`PrefillQueue::remove`].
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

    /// Removes a prompt that was computed or abandoned. If it was the head, the next prompt runs from
    /// now on.
    pub fn remove(&mut self, ticket: u64, now_ms: u64) {
        let Some(at) = self.jobs.iter().position(|job| job.0 == ticket) else { return };
        self.jobs.remove(at);
        if at == 0 {
            self.since_ms = now_ms;
        }
    }

    /// Returns the head of the queue; all zero if the queue is empty.
    pub fn head(&self, now_ms: u64) -> QueueHead {
        let Some(&(_, work_bytes)) = self.jobs.front() else { return QueueHead::default() };
        QueueHead { work_bytes, busy_ms: now_ms.saturating_sub(self.since_ms) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_a_later_prompt_does_not_reset_the_head_s_time() {
        let mut queue = PrefillQueue::default();
        let first = queue.push(10.0, 100);
        let second = queue.push(20.0, 110);
        queue.remove(second, 150);
        assert_eq!(queue.head(160), QueueHead { work_bytes: 10.0, busy_ms: 60.0 });
        queue.remove(first, 170);
        queue.remove(first, 180);
        assert_eq!(queue.head(200), QueueHead::default());
        queue.push(30.0, 300);
        assert_eq!(queue.head(290).busy_ms, 0.0, "a clock that goes back yields no time");
    }
}
