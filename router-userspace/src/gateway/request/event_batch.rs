//! [`EventBatch`]: events that are sent together.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until};

/// Size from which on a batch is sent, in bytes. It is about what the connections read at once.
const MAX_BATCH: usize = 8 << 10;
/// Minimum time between two batches below that size. An engine's step takes longer, so that an event waits
/// only in a burst.
const INTERVAL: Duration = Duration::from_millis(1);

/// Events that are not sent yet. hyper passes on one chunk of an engine's answer at a time, and writes to
/// the client whenever no part is ready: without the batch, each event of a burst is a write of its own.
#[derive(Debug, Default)]
pub(crate) struct EventBatch {
    /// The only event so far. It is not copied.
    first: Bytes,
    joined: BytesMut,
    /// When the last batch was sent.
    sent: Option<Instant>,
    /// `None` until an event has to wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl EventBatch {
    /// Adds an event. Returns whether the batch is full.
    pub(crate) fn push(&mut self, event: Bytes) -> bool {
        if self.is_empty() {
            self.first = event;
        } else {
            self.joined.extend_from_slice(&std::mem::take(&mut self.first));
            self.joined.extend_from_slice(&event);
        }
        self.first.len() + self.joined.len() >= MAX_BATCH
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.joined.is_empty()
    }

    /// All events, if there are any.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        self.sent = Some(now);
        let first = std::mem::take(&mut self.first);
        Some(if first.is_empty() { self.joined.split().freeze() } else { first })
    }

    /// The batch, once it is due. Called while no other event is ready. An event that comes alone is due at
    /// once.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.is_empty() {
            return Poll::Ready(None);
        }
        let now = Instant::now();
        let Some(due) = self.sent.map(|sent| sent + INTERVAL).filter(|due| *due > now) else {
            return Poll::Ready(self.take(now));
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(self.take(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::advance;

    use super::*;

    const EVENT: Bytes = Bytes::from_static(b"data: 1\n\n");

    /// The batch, and how long it was waited for.
    async fn taken(batch: &mut EventBatch) -> (Option<Bytes>, Duration) {
        let start = Instant::now();
        let events = poll_fn(|cx| batch.poll_take(cx)).await;
        (events, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_comes_alone_is_sent_at_once() {
        let mut batch = EventBatch::default();
        for _ in 0..3 {
            assert!(!batch.push(EVENT));
            assert_eq!(taken(&mut batch).await, (Some(EVENT), Duration::ZERO));
            advance(INTERVAL).await;
        }
        assert_eq!(taken(&mut batch).await, (None, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn the_events_of_a_burst_are_joined() {
        let mut batch = EventBatch::default();
        batch.push(EVENT);
        taken(&mut batch).await;
        for _ in 0..2 {
            batch.push(EVENT);
            assert!(poll_fn(|cx| Poll::Ready(batch.poll_take(cx))).await.is_pending());
            batch.push(EVENT);
            let (events, waited) = taken(&mut batch).await;
            assert_eq!(events.as_deref(), Some(&b"data: 1\n\ndata: 1\n\n"[..]));
            assert!(waited > Duration::ZERO && waited <= 2 * INTERVAL, "{waited:?}");
        }
    }

    #[test]
    fn a_batch_is_full_at_its_size() {
        let mut batch = EventBatch::default();
        let pushed = (1..).find(|_| batch.push(EVENT)).unwrap();
        assert_eq!(pushed, MAX_BATCH.div_ceil(EVENT.len()));
        let now = Instant::now();
        assert_eq!(batch.take(now).unwrap().len(), pushed * EVENT.len());
        assert!(batch.take(now).is_none());
        batch.push(Bytes::from(vec![b'x'; MAX_BATCH]));
        assert_eq!(batch.take(now).unwrap().len(), MAX_BATCH, "a long event is sent whole");
    }
}
