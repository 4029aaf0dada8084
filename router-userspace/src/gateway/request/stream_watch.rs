//! [`StreamWatch`]: when an answer of which no part comes is given up.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use router_core::fleet::Worker;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::gateway::upstream::dispatch::Silence;
use crate::gateway::upstream::fault::FaultKind;

/// Interval at which an answer of which no part comes is checked: its limits, and its worker's health.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// When an answer that is passed on is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchLimits {
    pub deadline: Option<Instant>,
    /// Maximum time between two parts.
    pub idle: Duration,
    /// Maximum time in which the worker answers no probe.
    pub unresponsive: Duration,
}

/// Why an answer is given up.
#[derive(Debug)]
pub(crate) enum Overdue {
    Deadline,
    /// The worker sends nothing.
    Fault(FaultKind),
}

/// The limits of one answer on its way to the client. Only time in which the worker is waited for counts:
/// a client that does not read is no fault of the worker.
pub(crate) struct StreamWatch {
    limits: WatchLimits,
    /// Since when the next part is waited for.
    waiting: Option<Instant>,
    silence: Silence,
    /// `None` until a part is waited for: most answers never need a timer.
    check: Option<Pin<Box<Sleep>>>,
}

impl StreamWatch {
    pub(crate) fn new(limits: WatchLimits) -> StreamWatch {
        StreamWatch { limits, waiting: None, silence: Silence::default(), check: None }
    }

    /// A part has come. Returns whether it came after the deadline, which is otherwise checked only
    /// while no part is ready.
    pub(crate) fn received(&mut self, now: Instant) -> bool {
        self.waiting = None;
        // A worker that sends parts works, even if it misses probes.
        self.silence = Silence::default();
        self.limits.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Ready if the answer is to be given up. Called while its next part is waited for.
    pub(crate) fn poll_overdue(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<Overdue> {
        let now = Instant::now();
        let since = *self.waiting.get_or_insert(now);
        let mut check = match self.check.take() {
            Some(check) => check,
            None => Box::pin(sleep_until(self.next_check(since, now))),
        };
        while check.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(overdue) = self.overdue(since, now, worker) {
                return Poll::Ready(overdue);
            }
            check.as_mut().reset(self.next_check(since, now));
        }
        self.check = Some(check);
        Poll::Pending
    }

    fn overdue(&mut self, since: Instant, now: Instant, worker: &Worker) -> Option<Overdue> {
        let WatchLimits { deadline, idle, unresponsive } = self.limits;
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Some(Overdue::Deadline);
        }
        if now.duration_since(since) >= idle {
            let waited_for = "the next part of its answer";
            return Some(Overdue::Fault(FaultKind::Timeout { waited_for, limit: idle }));
        }
        let lasts = self.silence.lasts(worker.health.is_silent(), unresponsive);
        lasts.then_some(Overdue::Fault(FaultKind::Silent))
    }

    /// When the limits are checked next.
    fn next_check(&self, since: Instant, now: Instant) -> Instant {
        let check = (now + CHECK_INTERVAL).min(since + self.limits.idle);
        self.limits.deadline.map_or(check, |deadline| check.min(deadline))
    }
}

#[cfg(test)]
mod tests {
    use router_core::fleet::WorkerKey;
    use tokio::time::{advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch(deadline: Option<Duration>) -> StreamWatch {
        let deadline = deadline.map(|after| Instant::now() + after);
        StreamWatch::new(WatchLimits { deadline, idle: 10 * SECOND, unresponsive: 3 * SECOND })
    }

    fn worker() -> Worker {
        let key = WorkerKey { uid: "u".into(), address: ([127, 0, 0, 1], 8000).into() };
        Worker::new(key, "default/pod")
    }

    /// Waits for the next part for that long.
    async fn wait(watch: &mut StreamWatch, worker: &Worker, time: Duration) -> Option<Overdue> {
        let overdue = std::future::poll_fn(|cx| watch.poll_overdue(cx, worker));
        timeout(time, overdue).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_time_in_which_a_part_is_waited_for_counts() {
        let (mut watch, worker) = (watch(None), worker());
        for _ in 0..3 {
            assert!(wait(&mut watch, &worker, 9 * SECOND).await.is_none());
            assert!(!watch.received(Instant::now()));
            // The client does not read.
            advance(60 * SECOND).await;
        }
        assert!(wait(&mut watch, &worker, 9 * SECOND).await.is_none());
        let late = wait(&mut watch, &worker, SECOND + SECOND / 2).await;
        assert!(matches!(late, Some(Overdue::Fault(FaultKind::Timeout { .. }))), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_sends_parts_is_not_silent() {
        let (mut watch, worker) = (watch(None), worker());
        worker.health.unreachable();
        worker.health.probe_timed_out();
        assert!(worker.health.is_silent());
        for _ in 0..5 {
            assert!(wait(&mut watch, &worker, 2 * SECOND).await.is_none());
            watch.received(Instant::now());
        }
        let silent = wait(&mut watch, &worker, 6 * SECOND).await;
        assert!(matches!(silent, Some(Overdue::Fault(FaultKind::Silent))), "{silent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_wait_and_a_stream_that_never_waits() {
        let (mut waiting, mut flowing) = (watch(Some(3 * SECOND)), watch(Some(3 * SECOND)));
        let worker = worker();
        assert!(wait(&mut waiting, &worker, 2 * SECOND).await.is_none());
        assert!(!flowing.received(Instant::now()));
        let over = wait(&mut waiting, &worker, 2 * SECOND).await;
        assert!(matches!(over, Some(Overdue::Deadline)), "{over:?}");
        assert!(flowing.received(Instant::now()));
    }
}
