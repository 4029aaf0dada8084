//! [`Visits`]: whether a connection's client waits for an answer, and since when it does not.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::{Answer, BodyError};

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Visits {
    state: Mutex<State>,
    begun: Notify,
}

#[derive(Clone, Copy, Debug)]
struct State {
    running: usize,
    /// Whether there ever was one.
    any: bool,
    /// When the last one ended, or the connection began.
    idle_since: Instant,
}

impl Visits {
    pub(crate) fn new() -> Arc<Visits> {
        let state = State { running: 0, any: false, idle_since: Instant::now() };
        Arc::new(Visits { state: Mutex::new(state), begun: Notify::new() })
    }

    /// A request has come; it is over when the visit is dropped.
    pub(crate) fn begin(self: &Arc<Visits>) -> Visit {
        let mut state = self.lock();
        (state.running, state.any) = (state.running + 1, true);
        drop(state);
        self.begun.notify_one();
        Visit(Arc::clone(self))
    }

    /// Since when no request runs; `None` while one does.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.running == 0).then_some(state.idle_since)
    }

    /// Resolves once there has been a request.
    pub(crate) async fn any(&self) {
        while !self.lock().any {
            self.begun.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts and times are whole whatever panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, from its head to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Visit(Arc<Visits>);

impl Visit {
    /// Lasts until the answer's body is gone.
    pub(crate) fn with(self, answer: Response<Answer>) -> Response<Visited> {
        answer.map(|answer| Visited { answer, _visit: self })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        state.idle_since = Instant::now();
    }
}

/// An answer that its client waits for.
pub(crate) struct Visited {
    answer: Answer,
    _visit: Visit,
}

impl Body for Visited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_start_and_between_visits() {
        let visits = Visits::new();
        let start = Instant::now();
        assert_eq!(visits.idle_since(), Some(start));
        let one = visits.begin().with(Response::new(Answer::whole(Bytes::from_static(b"a"))));
        let two = visits.begin();
        drop(one);
        assert_eq!(visits.idle_since(), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(two);
        assert_eq!(visits.idle_since(), Some(start + Duration::from_secs(5)));
    }

    #[tokio::test]
    async fn the_first_visit_is_told_before_and_after_it_began() {
        let visits = Visits::new();
        let (told, begun) = tokio::join!(visits.any(), async { drop(visits.begin()) });
        assert_eq!((told, begun), ((), ()));
        visits.any().await;
    }
}
