//! [`ConnectionActivity`]: the running requests of one connection, since when it is idle, and the
//! answers that its client does not read.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::gateway::request::response_body::{BodyError, ResponseBody};

/// Number of checks within the send timeout whether a client reads its answer.
const CHECKS_PER_TIMEOUT: u32 = 8;

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionActivity {
    state: Mutex<ActivityState>,
    begun: Notify,
}

#[derive(Debug)]
struct ActivityState {
    running: usize,
    /// The number of requests so far.
    total: u64,
    /// When the last request ended, or the connection began.
    idle_since: Instant,
    /// Streamed answers over HTTP/2, by the number of their request.
    streamed: HashMap<u64, Arc<Mutex<StallableAnswer>>>,
}

impl ConnectionActivity {
    pub(crate) fn new() -> Arc<ConnectionActivity> {
        let streamed = HashMap::new();
        let state = ActivityState { running: 0, total: 0, idle_since: Instant::now(), streamed };
        Arc::new(ConnectionActivity { state: Mutex::new(state), begun: Notify::new() })
    }

    /// A request begins; it ends when the guard is dropped.
    pub(crate) fn begin(self: &Arc<ConnectionActivity>) -> RequestGuard {
        let mut state = self.state.lock();
        (state.running, state.total) = (state.running + 1, state.total + 1);
        let number = state.total;
        drop(state);
        self.begun.notify_one();
        RequestGuard { activity: Arc::clone(self), number }
    }

    /// Since when no request runs; `None` while one runs.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (state.running == 0).then_some(state.idle_since)
    }

    /// Resolves once the first request has begun.
    pub(crate) async fn first_request(&self) {
        while self.state.lock().total == 0 {
            self.begun.notified().await;
        }
    }

    /// Drops answers of which the client has read nothing for `limit`; never resolves. An HTTP/2
    /// client may keep the window of one stream closed and be alive otherwise: then the answer's body
    /// is not polled, and the TCP user timeout does not expire.
    pub(crate) async fn drop_stalled(&self, limit: Duration) {
        loop {
            tokio::time::sleep((limit / CHECKS_PER_TIMEOUT).max(Duration::from_millis(10))).await;
            let streamed: Vec<_> = self.state.lock().streamed.values().cloned().collect();
            for answer in streamed {
                let stalled = answer.lock().take_stalled(limit);
                // Its leases are released without the lock.
                drop(stalled);
            }
        }
    }
}

/// One running request, from its head to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    activity: Arc<ConnectionActivity>,
    number: u64,
}

impl RequestGuard {
    /// Keeps the guard until the answer's body is dropped.
    pub(crate) fn track(
        self,
        answer: Response<ResponseBody>,
        version: Version,
    ) -> Response<TrackedBody> {
        answer.map(|answer| {
            // A full body keeps no engine busy; and for HTTP/1.1 the TCP user timeout applies.
            let body = match answer {
                ResponseBody::Streamed(_) if version == Version::HTTP_2 => {
                    let answer = StallableAnswer { answer: Some(answer), offered: None };
                    let answer = Arc::new(Mutex::new(answer));
                    let mut state = self.activity.state.lock();
                    state.streamed.insert(self.number, Arc::clone(&answer));
                    drop(state);
                    TrackedAnswer::Stallable(answer)
                }
                answer => TrackedAnswer::Direct(answer),
            };
            TrackedBody { body, _guard: self }
        })
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.running -= 1;
        state.idle_since = Instant::now();
        state.streamed.remove(&self.number);
    }
}

/// The body of an answer, with the guard of its request.
pub(crate) struct TrackedBody {
    body: TrackedAnswer,
    _guard: RequestGuard,
}

enum TrackedAnswer {
    Direct(ResponseBody),
    Stallable(Arc<Mutex<StallableAnswer>>),
}

/// An answer that is dropped if its client does not read it.
struct StallableAnswer {
    /// `None` once dropped.
    answer: Option<ResponseBody>,
    /// Since when a part waits for the client; `None` while the client waits for the next part.
    offered: Option<Instant>,
}

impl std::fmt::Debug for StallableAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StallableAnswer").field("offered", &self.offered).finish_non_exhaustive()
    }
}

impl StallableAnswer {
    fn take_stalled(&mut self, limit: Duration) -> Option<ResponseBody> {
        let overdue = self.offered.is_some_and(|since| since.elapsed() >= limit);
        if overdue { self.answer.take() } else { None }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.offered = None;
        let Some(answer) = &mut self.answer else {
            return Poll::Ready(Some(Err("the client has read nothing for too long".into())));
        };
        let part = Pin::new(answer).poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = part {
            self.offered = Some(Instant::now());
        }
        part
    }
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.body {
            TrackedAnswer::Direct(answer) => Pin::new(answer).poll_frame(cx),
            TrackedAnswer::Stallable(answer) => answer.lock().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            TrackedAnswer::Direct(answer) => answer.is_end_stream(),
            TrackedAnswer::Stallable(answer) => {
                answer.lock().answer.as_ref().is_some_and(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            TrackedAnswer::Direct(answer) => answer.size_hint(),
            TrackedAnswer::Stallable(answer) => {
                let answer = answer.lock();
                answer.answer.as_ref().map_or_else(SizeHint::default, Body::size_hint)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_start_and_between_requests() {
        let activity = ConnectionActivity::new();
        let start = Instant::now();
        assert_eq!(activity.idle_since(), Some(start));
        let answer = Response::new(ResponseBody::full(Bytes::from_static(b"a")));
        let one = activity.begin().track(answer, Version::HTTP_11);
        let two = activity.begin();
        drop(one);
        assert_eq!(activity.idle_since(), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(two);
        assert_eq!(activity.idle_since(), Some(start + Duration::from_secs(5)));
    }

    #[tokio::test]
    async fn first_request_resolves_before_and_after_the_request_begins() {
        let activity = ConnectionActivity::new();
        let (resolved, begun) =
            tokio::join!(activity.first_request(), async { drop(activity.begin()) });
        assert_eq!((resolved, begun), ((), ()));
        activity.first_request().await;
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
    async fn an_answer_that_its_client_does_not_read_is_dropped() {
        use http_body_util::BodyExt;

        let activity = ConnectionActivity::new();
        let held = Arc::new(());
        let answer =
            Response::new(ResponseBody::streamed(Counted { _held: Arc::clone(&held), parts: 0 }));
        let mut taken = activity.begin().track(answer, Version::HTTP_2).into_body();
        let limit = Duration::from_secs(8);
        let look = async |wait: u64| {
            let until = Duration::from_secs(wait);
            assert!(tokio::time::timeout(until, activity.drop_stalled(limit)).await.is_err());
            Arc::strong_count(&held) == 2
        };
        assert!(look(20).await, "nothing has been offered yet");
        taken.frame().await.unwrap().unwrap();
        assert!(look(7).await, "the limit is not reached");
        taken.frame().await.unwrap().unwrap();
        assert!(look(7).await, "the client has read a part since");
        assert!(!look(3).await, "the answer must be dropped");
        assert!(taken.frame().await.unwrap().is_err());
        drop(taken);
        assert!(activity.state.lock().streamed.is_empty());
    }
}
