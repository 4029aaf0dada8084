//! [`KeepAlive`]: comments in a stream of which nothing else is sent for a while, so that no proxy on
//! the way to the client takes it for dead.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

/// A comment of a stream of server-sent events, which clients skip.
const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// When the next comment is due.
pub(crate) struct KeepAlive {
    interval: Duration,
    due: Instant,
    /// Reset only when it fires, not with every event.
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    /// The first comment is due at `first`, and another whenever nothing was sent for `interval`.
    pub(crate) fn new(first: Instant, interval: Duration) -> KeepAlive {
        KeepAlive { interval, due: first, timer: Box::pin(sleep_until(first)) }
    }

    /// Something else was sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.due = now + self.interval;
    }

    /// The next comment, once it is due.
    pub(crate) fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let is_due = now >= self.due;
            if is_due {
                self.sent(now);
            }
            self.timer.as_mut().reset(self.due);
            if is_due {
                return Poll::Ready(PING);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_comment_is_due_once_nothing_was_sent_for_the_interval() {
        let second = Duration::from_secs(1);
        let mut keep_alive = KeepAlive::new(Instant::now() + 10 * second, 10 * second);
        advance(9 * second).await;
        keep_alive.sent(Instant::now());
        let early = timeout(9 * second, poll_fn(|cx| keep_alive.poll_ping(cx))).await;
        assert!(early.is_err(), "an event was sent meanwhile");
        for _ in 0..2 {
            let start = Instant::now();
            assert_eq!(poll_fn(|cx| keep_alive.poll_ping(cx)).await, PING);
            assert!(start.elapsed() <= 10 * second);
        }
    }
}
