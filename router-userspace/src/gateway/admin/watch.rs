//! [`FleetWatch`]: `/fleet?watch`, the fleet as server-sent events (the HTML standard, section 9.2).
//!
//! One snapshot a second is made however many clients watch, and none while no client does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Maximum number of clients that watch. Further ones get 503.
const MAX_WATCHERS: u16 = 16;
/// Time between two snapshots.
const INTERVAL: Duration = Duration::from_secs(1);
pub(super) const CONTENT_TYPE: &str = "text/event-stream";
/// The last event of a gateway that drains.
const DRAINING: Bytes = Bytes::from_static(b"event: draining\ndata: {}\n\n");

/// Whether a query of `/fleet` asks for events.
pub(super) fn is_asked(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "watch")
}

/// Whether a page of another site asks: it cannot read the answer, but would keep a slot.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site")
}

/// Sends snapshots of the fleet to those who watch it.
#[derive(Debug)]
pub(crate) struct FleetWatch {
    free: Arc<Semaphore>,
    /// The last event; `None` while no client watches.
    events: watch::Sender<Option<Bytes>>,
    subscribed: Notify,
    draining: CancellationToken,
}

/// The events of one client, until it is gone or the gateway drains. A slow one skips events.
///
/// It is a type of its own, since the compiler cannot show that a connection of a `StreamBody` of this stream
/// is `Send`.
pub(crate) struct WatchBody(BoxStream<'static, Bytes>);

struct Watcher {
    events: watch::Receiver<Option<Bytes>>,
    draining: CancellationToken,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl FleetWatch {
    /// Streams end when `draining` is cancelled.
    pub(crate) fn new(draining: CancellationToken) -> FleetWatch {
        let free = Arc::new(Semaphore::new(MAX_WATCHERS.into()));
        let (events, subscribed) = (watch::Sender::new(None), Notify::new());
        FleetWatch { free, events, subscribed, draining }
    }

    /// Makes a snapshot a second while somebody watches, on a thread that may block. Does not end.
    pub(super) async fn publish(&self, make: impl Fn() -> String + Clone + Send + 'static) {
        loop {
            if self.events.receiver_count() == 0 {
                self.events.send_replace(None);
                self.subscribed.notified().await;
                continue;
            }
            let made = tokio::task::spawn_blocking(make.clone()).await;
            if let Ok(fleet) = made {
                self.events.send_replace(Some(format!("event: fleet\ndata: {fleet}\n\n").into()));
            }
            sleep(INTERVAL).await;
        }
    }

    /// The events from now on, beginning with the last one.
    ///
    /// # Errors
    /// Why there are none, in words.
    pub(super) fn subscribe(&self) -> Result<WatchBody, String> {
        if self.draining.is_cancelled() {
            return Err("draining".to_owned());
        }
        let permit = Arc::clone(&self.free).try_acquire_owned();
        let Ok(permit) = permit else {
            return Err(format!("{MAX_WATCHERS} clients watch already, which is the maximum"));
        };
        let mut events = self.events.subscribe();
        events.mark_changed();
        self.subscribed.notify_one();
        let draining = self.draining.clone();
        let watcher = Watcher { events, draining, is_over: false, _permit: permit };
        Ok(WatchBody(unfold(watcher, Watcher::next).boxed()))
    }

    /// Waits until every connection has taken the last event of its stream.
    pub(super) async fn ended(&self) {
        // The semaphore is never closed.
        _ = self.free.acquire_many(MAX_WATCHERS.into()).await;
    }
}

impl Watcher {
    async fn next(mut self) -> Option<(Bytes, Watcher)> {
        if self.is_over {
            return None;
        }
        loop {
            tokio::select! {
                changed = self.events.changed() => changed.ok()?,
                () = self.draining.cancelled() => {
                    self.is_over = true;
                    return Some((DRAINING, self));
                }
            }
            let event = self.events.borrow_and_update().clone();
            if let Some(event) = event {
                return Some((event, self));
            }
        }
    }
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_next_unpin(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn snapshots_are_shared_and_made_only_while_somebody_watches() {
        let watch = Arc::new(FleetWatch::new(CancellationToken::new()));
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let make = move || counted.fetch_add(1, Ordering::Relaxed).to_string();
        let publisher = Arc::clone(&watch);
        let publisher = tokio::spawn(async move { publisher.publish(make).await });
        sleep(INTERVAL * 5).await;
        assert_eq!(made.load(Ordering::Relaxed), 0, "no client watches");
        let mut watchers: Vec<WatchBody> =
            (0..MAX_WATCHERS).map(|_| watch.subscribe().unwrap()).collect();
        assert!(watch.subscribe().err().unwrap().contains("maximum"));
        for number in 0..3 {
            let want = format!("event: fleet\ndata: {number}\n\n");
            for watcher in &mut watchers {
                assert_eq!(watcher.0.next().await.unwrap(), want);
            }
        }
        watchers.pop();
        let mut late = watch.subscribe().unwrap();
        assert_eq!(
            late.0.next().await.unwrap(),
            "event: fleet\ndata: 2\n\n",
            "the last one at once"
        );
        publisher.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_the_streams_and_admits_no_other() {
        let draining = CancellationToken::new();
        let watch = FleetWatch::new(draining.clone());
        let mut watcher = watch.subscribe().unwrap();
        draining.cancel();
        let ended = timeout(INTERVAL, watch.ended()).await;
        assert!(ended.is_err(), "the event has not been taken");
        assert_eq!(watcher.0.next().await.unwrap(), DRAINING);
        assert_eq!(watcher.0.next().await, None);
        watch.ended().await;
        assert_eq!(watch.subscribe().err().unwrap(), "draining");
    }

    #[test]
    fn the_parameter_needs_no_value() {
        assert!(is_asked("watch") && is_asked("watch=1") && is_asked("a=b&watch"));
        assert!(!is_asked("") && !is_asked("watched") && !is_asked("a=watch"));
    }
}
