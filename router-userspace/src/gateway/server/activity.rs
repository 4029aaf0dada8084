//! [`Visits`]: whether a connection's client waits for an answer, and since when it does not; and
//! which answers the client does not take.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::gateway::request::body::{Answer, BodyError};

/// How often in its time an answer is looked at that its client may not take.
const LOOKS: u32 = 8;

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Visits {
    state: Mutex<State>,
    begun: Notify,
}

#[derive(Debug)]
struct State {
    running: usize,
    /// How many there ever were.
    all: u64,
    /// When the last one ended, or the connection began.
    idle_since: Instant,
    /// Answers over HTTP/2, by visit.
    watched: HashMap<u64, Arc<Mutex<Watched>>>,
}

impl Visits {
    pub(crate) fn new() -> Arc<Visits> {
        let watched = HashMap::new();
        let state = State { running: 0, all: 0, idle_since: Instant::now(), watched };
        Arc::new(Visits { state: Mutex::new(state), begun: Notify::new() })
    }

    /// A request has come; it is over when the visit is dropped.
    pub(crate) fn begin(self: &Arc<Visits>) -> Visit {
        let mut state = self.lock();
        (state.running, state.all) = (state.running + 1, state.all + 1);
        let number = state.all;
        drop(state);
        self.begun.notify_one();
        Visit { visits: Arc::clone(self), number }
    }

    /// Since when no request runs; `None` while one does.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.running == 0).then_some(state.idle_since)
    }

    /// Resolves once there has been a request.
    pub(crate) async fn any(&self) {
        while self.lock().all == 0 {
            self.begun.notified().await;
        }
    }

    /// Drops answers of which the client has taken nothing for `limit`, for ever. An HTTP/2 client
    /// may leave one stream's window closed and be alive otherwise: neither is the answer asked
    /// for its next part then, nor does the kernel see anything wrong.
    pub(crate) async fn drop_untaken(&self, limit: Duration) {
        loop {
            tokio::time::sleep((limit / LOOKS).max(Duration::from_millis(10))).await;
            let watched: Vec<_> = self.lock().watched.values().cloned().collect();
            for answer in watched {
                let untaken = watched_lock(&answer).give_up(limit);
                // What it holds is let go without the lock.
                drop(untaken);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts and times are whole whatever panics.
        self.state.lock()
    }
}

/// One request, from its head to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Visit {
    visits: Arc<Visits>,
    number: u64,
}

impl Visit {
    /// Lasts until the answer's body is gone.
    pub(crate) fn with(self, answer: Response<Answer>, version: Version) -> Response<Visited> {
        answer.map(|answer| {
            // Bytes at hand hold no engine; and of HTTP/1.1 the kernel sees the client not read.
            let body = match answer {
                Answer::Relayed(_) if version == Version::HTTP_2 => {
                    let watched = Watched { answer: Some(answer), offered: None };
                    let watched = Arc::new(Mutex::new(watched));
                    let mut state = self.visits.lock();
                    state.watched.insert(self.number, Arc::clone(&watched));
                    drop(state);
                    Kept::Watched(watched)
                }
                answer => Kept::Own(answer),
            };
            Visited { body, _visit: self }
        })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.visits.lock();
        state.running -= 1;
        state.idle_since = Instant::now();
        state.watched.remove(&self.number);
    }
}

/// An answer that its client waits for.
pub(crate) struct Visited {
    body: Kept,
    _visit: Visit,
}

enum Kept {
    Own(Answer),
    Watched(Arc<Mutex<Watched>>),
}

/// An answer that is given up where its client takes nothing of it.
struct Watched {
    /// `None` once given up.
    answer: Option<Answer>,
    /// Since when a part of it waits for the client; `None` while the client waits for the next.
    offered: Option<Instant>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("offered", &self.offered).finish_non_exhaustive()
    }
}

impl Watched {
    fn give_up(&mut self, limit: Duration) -> Option<Answer> {
        let overdue = self.offered.is_some_and(|since| since.elapsed() >= limit);
        if overdue { self.answer.take() } else { None }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.offered = None;
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Some(Err("the client has taken nothing for too long".into())));
        };
        let part = Pin::new(answer).poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = part {
            self.offered = Some(Instant::now());
        }
        part
    }
}

fn watched_lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    // An answer that panicked is dropped by whoever polled it.
    watched.lock()
}

impl Body for Visited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.body {
            Kept::Own(answer) => Pin::new(answer).poll_frame(cx),
            Kept::Watched(watched) => watched_lock(watched).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Kept::Own(answer) => answer.is_end_stream(),
            Kept::Watched(watched) => {
                watched_lock(watched).answer.as_ref().is_some_and(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Kept::Own(answer) => answer.size_hint(),
            Kept::Watched(watched) => {
                let watched = watched_lock(watched);
                watched.answer.as_ref().map_or_else(SizeHint::default, Body::size_hint)
            }
        }
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
        let answer = Response::new(Answer::whole(Bytes::from_static(b"a")));
        let one = visits.begin().with(answer, Version::HTTP_11);
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

    /// Two parts, and the number of bodies that live.
    struct Counted {
        _held: Arc<()>,
        parts: u8,
    }

    impl Body for Counted {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.parts += 1;
            let part = Frame::data(Bytes::from_static(b"part"));
            Poll::Ready((self.parts <= 2).then_some(Ok(part)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_its_client_does_not_take_is_given_up() {
        use http_body_util::BodyExt;

        let visits = Visits::new();
        let held = Arc::new(());
        let answer = Response::new(Answer::relayed(Counted { _held: Arc::clone(&held), parts: 0 }));
        let mut taken = visits.begin().with(answer, Version::HTTP_2).into_body();
        let limit = Duration::from_secs(8);
        let look = async |wait: u64| {
            let until = Duration::from_secs(wait);
            assert!(tokio::time::timeout(until, visits.drop_untaken(limit)).await.is_err());
            Arc::strong_count(&held) == 2
        };
        assert!(look(20).await, "nothing has been offered yet");
        taken.frame().await.unwrap().unwrap();
        assert!(look(7).await, "its time is not over");
        taken.frame().await.unwrap().unwrap();
        assert!(look(7).await, "it has taken a part since");
        assert!(!look(3).await, "what the answer holds must be let go");
        assert!(taken.frame().await.unwrap().is_err());
        drop(taken);
        assert!(visits.lock().watched.is_empty());
    }
}
