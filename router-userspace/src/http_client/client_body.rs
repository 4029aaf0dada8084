//! [`ClientBody`]: the body of a client's request, read by the gateway or passed on to a backend.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::body_copy::BodyCopy;
use super::innermost;
use super::pace::Pace;
use super::request_source::RequestSource;
use super::unread_body::UnreadBody;

/// Why a client's body did not come whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientBodyError {
    #[error("the body is over {0} bytes")]
    TooLarge(usize),
    #[error("the body came too slowly")]
    Late(Duration),
    /// The client broke its body, or left while it sent it.
    #[error("{0}")]
    Broken(String),
}

/// Maximum size of a body that is kept while it passes, so that it can be sent again.
const MAX_REPLAY: usize = 16 << 10;

/// The body of a client's request. Dropped before its end, it leaves the rest to [`UnreadBody`].
pub(crate) struct ClientBody<B = RequestSource>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// `None` once it has ended or failed.
    body: Option<B>,
    /// `None` for HTTP/2, which resets a stream without the connection.
    unread: Option<Arc<UnreadBody<B>>>,
    /// The client waits for `100 Continue`, which is sent when the body is read.
    awaits_continue: bool,
    /// `None` until the body is on its way to a backend. Who reads it before has limits of their own.
    limits: Option<BodyLimits<B>>,
    /// What has passed, for mirrored requests.
    copy: Option<Box<BodyCopy>>,
    /// What was read before, and is sent again before the rest.
    replay: VecDeque<Bytes>,
}

/// The limits of a body on its way to a backend, and what has become of it.
struct BodyLimits<B: Body<Data = Bytes> + Unpin> {
    state: Arc<Mutex<BodyState<B>>>,
    /// Notified once the HTTP client has dropped the body.
    dropped: Arc<Notify>,
    /// What has passed; `None` if that is too much to be sent again.
    passed: Option<VecDeque<Bytes>>,
    limit: usize,
    size: usize,
    idle: Duration,
    pace: Pace,
    /// Since when the next piece is waited for, and when that ends.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// What becomes of a body that the HTTP client has.
struct BodyState<B: Body<Data = Bytes> + Unpin> {
    /// The body, if it was dropped and can be sent again.
    reclaimed: Option<ClientBody<B>>,
    error: Option<ClientBodyError>,
    /// The backend has begun to answer: it may take the rest of the body slowly, with pauses below the TCP
    /// user timeout of its connection.
    answered: bool,
    waits: ClientWait,
}

/// Whether the backend waits for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientWait {
    /// It has not waited yet: it has not asked for a part, or each was there at once.
    Never,
    /// It has asked for a part that the client has not sent yet.
    Now,
    /// The part for which it waited last came then.
    Until(Instant),
}

impl<B: Body<Data = Bytes> + Unpin> BodyState<B> {
    /// What the backend has asked for has come.
    fn stop_waiting(&mut self) {
        if self.waits == ClientWait::Now {
            self.waits = ClientWait::Until(Instant::now());
        }
    }
}

/// Shows what has become of a [`ClientBody`] that is on its way to a backend.
pub(crate) struct BodyHandle<B = RequestSource>
where
    B: Body<Data = Bytes> + Unpin,
{
    state: Arc<Mutex<BodyState<B>>>,
    dropped: Arc<Notify>,
}

impl<B: Body<Data = Bytes> + Unpin> ClientBody<B> {
    pub(crate) fn new(
        body: B,
        unread: Option<Arc<UnreadBody<B>>>,
        awaits_continue: bool,
    ) -> ClientBody<B> {
        let replay = VecDeque::new();
        ClientBody { body: Some(body), unread, awaits_continue, limits: None, copy: None, replay }
    }

    /// Limits the body for its way to a backend: `limit` is the maximum size in bytes, `idle` the limit
    /// of [`Pace`]. It can be reclaimed by the handle if no more than 16 KiB of it were read.
    pub(crate) fn limited(
        mut self,
        limit: usize,
        idle: Duration,
    ) -> (ClientBody<B>, BodyHandle<B>) {
        let waits = ClientWait::Never;
        let state = BodyState { reclaimed: None, error: None, answered: false, waits };
        let state = Arc::new(Mutex::new(state));
        let dropped = Arc::new(Notify::new());
        let handle = BodyHandle { state: Arc::clone(&state), dropped: Arc::clone(&dropped) };
        let pace = Pace::new(idle);
        let (passed, size, waiting) = (Some(VecDeque::new()), 0, None);
        self.limits = Some(BodyLimits { state, dropped, passed, limit, size, idle, pace, waiting });
        (self, handle)
    }

    /// Copies what passes from here on.
    pub(crate) fn copied_to(&mut self, copy: BodyCopy) {
        self.copy = Some(Box::new(copy));
        self.complete_copy();
    }

    /// Completes the copy if the body has ended. Who reads a body does not ask for more once its announced
    /// length is reached.
    fn complete_copy(&mut self) {
        if self.body.as_ref().is_none_or(Body::is_end_stream)
            && let Some(copy) = self.copy.take()
        {
            copy.complete();
        }
    }

    fn fail(&mut self, error: ClientBodyError) -> ClientBodyError {
        self.copy = None;
        if let Some(limits) = &self.limits {
            let mut state = limits.state.lock();
            state.error = Some(error.clone());
            state.stop_waiting();
        }
        self.leave_rest();
        error
    }

    fn leave_rest(&mut self) {
        let (Some(body), Some(unread)) = (self.body.take(), self.unread.take()) else { return };
        if !body.is_end_stream() {
            unread.leave(body, self.awaits_continue);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> BodyLimits<B> {
    /// A piece has come. Trailers are none.
    fn received(&mut self, piece: Option<&Bytes>) -> Result<(), ClientBodyError> {
        let bytes = piece.map_or(0, Bytes::len);
        self.state.lock().stop_waiting();
        self.size += bytes;
        if self.size > self.limit {
            return Err(ClientBodyError::TooLarge(self.limit));
        }
        self.keep(piece);
        let start = self.waiting.take().map_or_else(Instant::now, |(start, _)| start);
        self.pace.received(bytes, start);
        Ok(())
    }

    fn keep(&mut self, piece: Option<&Bytes>) {
        match (&mut self.passed, piece) {
            (Some(passed), Some(piece)) if self.size <= MAX_REPLAY => {
                passed.push_back(piece.clone());
            }
            _ => self.passed = None,
        }
    }

    /// The error of a client that is too slow with the next piece.
    fn late(&mut self, cx: &mut Context<'_>) -> Option<ClientBodyError> {
        let pace = &self.pace;
        let (_, end) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(sleep_until(pace.deadline(now))))
        });
        let is_over = end.as_mut().poll(cx).is_ready();
        let mut state = self.state.lock();
        state.waits = ClientWait::Now;
        (is_over && !state.answered).then_some(ClientBodyError::Late(self.idle))
    }
}

impl<B: Body<Data = Bytes> + Unpin> BodyHandle<B> {
    /// Waits until the HTTP client has dropped the body, up to `limit`: it may report an error before.
    pub(crate) async fn dropped(&self, limit: Duration) {
        _ = timeout(limit, self.dropped.notified()).await;
    }

    /// The body, if it can be sent again.
    pub(crate) fn returned(self) -> Option<ClientBody<B>> {
        self.state.lock().reclaimed.take()
    }

    /// Why the client's body did not come whole. HTTP/2 does not pass the error of a body on.
    pub(crate) fn error(&self) -> Option<ClientBodyError> {
        self.state.lock().error.clone()
    }

    /// The backend has begun to answer: the body's time has no limit from here on.
    pub(crate) fn answered(&self) {
        let reclaimed = {
            let mut state = self.state.lock();
            state.answered = true;
            state.reclaimed.take()
        };
        // It is not sent to another backend. Dropped without the lock, since it leaves its rest.
        drop(reclaimed);
    }

    /// Whether the backend has asked for a part that the client has not sent yet.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.state.lock().waits == ClientWait::Now
    }

    /// Until when the backend waited for the client: now if it still does, `None` if it never did.
    pub(crate) fn waited_until(&self) -> Option<Instant> {
        match self.state.lock().waits {
            ClientWait::Never => None,
            ClientWait::Now => Some(Instant::now()),
            ClientWait::Until(end) => Some(end),
        }
    }
}

impl<B> Body for ClientBody<B>
where
    B: Body<Data = Bytes, Error: std::error::Error + 'static> + Unpin,
{
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        let this = &mut *self;
        this.awaits_continue = false;
        if let Some(piece) = this.replay.pop_front() {
            if let Some(limits) = &mut this.limits {
                limits.size += piece.len();
                limits.keep(Some(&piece));
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let error = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let piece = frame.data_ref();
                match this.limits.as_mut().map_or(Ok(()), |limits| limits.received(piece)) {
                    Ok(()) => {
                        if let (Some(copy), Some(data)) = (&mut this.copy, frame.data_ref()) {
                            copy.push(data);
                        }
                        this.complete_copy();
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Err(error) => error,
                }
            }
            Poll::Ready(Some(Err(error))) => {
                this.body = None;
                ClientBodyError::Broken(innermost(&error))
            }
            Poll::Ready(None) => {
                this.body = None;
                if let Some(limits) = &this.limits {
                    limits.state.lock().stop_waiting();
                }
                this.complete_copy();
                return Poll::Ready(None);
            }
            Poll::Pending => match this.limits.as_mut().and_then(|limits| limits.late(cx)) {
                Some(error) => error,
                None => return Poll::Pending,
            },
        };
        Poll::Ready(Some(Err(this.fail(error))))
    }

    fn is_end_stream(&self) -> bool {
        self.replay.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let replay = self.replay.iter().map(Bytes::len).sum::<usize>() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + replay);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + replay);
        }
        hint
    }
}

/// Notifies last, when the body can be reclaimed.
struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Drop for ClientBody<B> {
    fn drop(&mut self) {
        let Some(limits) = self.limits.take() else { return self.leave_rest() };
        let _dropped = NotifyOnDrop(Arc::clone(&limits.dropped));
        let mut state = limits.state.lock();
        state.stop_waiting();
        let Some(mut replay) = limits.passed.filter(|_| !state.answered && state.error.is_none())
        else {
            drop(state);
            return self.leave_rest();
        };
        replay.append(&mut self.replay);
        let (body, unread, copy) = (self.body.take(), self.unread.take(), self.copy.take());
        let awaits_continue = self.awaits_continue;
        let limits = None;
        state.reclaimed = Some(ClientBody { body, unread, awaits_continue, limits, copy, replay });
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn sent(text: &'static str) -> (ClientBody<Full<Bytes>>, BodyHandle<Full<Bytes>>) {
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        ClientBody::new(body, None, false).limited(4, MINUTE)
    }

    /// A body of which nothing comes.
    fn stops() -> impl Body<Data = Bytes, Error = std::io::Error> + Unpin {
        StreamBody::new(futures_util::stream::pending())
    }

    #[tokio::test]
    async fn an_unread_body_and_a_small_one_are_reclaimed() {
        let (body, handle) = sent("a");
        drop(body);
        let body = handle.returned().expect("it was not read");
        let (mut body, handle) = body.limited(4, MINUTE);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        drop(body);
        let body = handle.returned().expect("it is small");
        assert_eq!(body.collect().await.unwrap().to_bytes(), "a");
    }

    #[tokio::test]
    async fn a_body_that_was_read_in_part_begins_again_unless_that_was_too_much() {
        let pieces = |sizes: &[usize]| {
            let pieces: Vec<_> =
                sizes.iter().map(|size| Ok::<_, std::io::Error>(vec![b'x'; *size])).collect();
            StreamBody::new(futures_util::stream::iter(
                pieces.into_iter().map(|piece| piece.map(|piece| Frame::data(Bytes::from(piece)))),
            ))
        };
        for (sizes, read, comes_back) in [
            (&[10, 20, 30][..], 2, true),
            (&[10, 20, 30], 4, true),
            (&[MAX_REPLAY, 1], 1, true),
            (&[MAX_REPLAY, 1], 2, false),
            (&[MAX_REPLAY + 1], 1, false),
        ] {
            let (mut body, handle) =
                ClientBody::new(pieces(sizes), None, false).limited(usize::MAX, MINUTE);
            for _ in 0..read {
                body.frame().await.transpose().unwrap();
            }
            drop(body);
            let again = handle.returned();
            assert_eq!(again.is_some(), comes_back, "{sizes:?}");
            if let Some(again) = again {
                let (again, _handle) = again.limited(usize::MAX, MINUTE);
                let whole = again.collect().await.unwrap().to_bytes();
                assert_eq!(whole.len(), sizes.iter().sum::<usize>(), "{sizes:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_whose_answer_has_begun_does_not_come_back() {
        let (mut body, handle) = sent("a");
        body.frame().await.unwrap().unwrap();
        handle.answered();
        drop(body);
        assert!(handle.returned().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_waited_for_until_it_was_dropped() {
        let (body, handle) = sent("a");
        let start = Instant::now();
        handle.dropped(MINUTE).await;
        assert_eq!(start.elapsed(), MINUTE, "the HTTP client has it");
        drop(body);
        handle.dropped(MINUTE).await;
        assert_eq!(start.elapsed(), MINUTE);
        assert!(handle.returned().is_some());
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_an_error() {
        let (mut body, handle) = sent("abcde");
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(handle.error(), Some(ClientBodyError::TooLarge(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_an_error_until_the_backend_answers() {
        let (mut body, handle) = ClientBody::new(stops(), None, false).limited(4, MINUTE);
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(handle.error(), Some(ClientBodyError::Late(MINUTE)));
        let (mut body, handle) = ClientBody::new(stops(), None, false).limited(4, MINUTE);
        handle.answered();
        assert!(tokio::time::timeout(2 * MINUTE, body.frame()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_fails_its_limits_or_is_given_up_leaves_its_rest() {
        let unread = Arc::new(UnreadBody::default());
        let body = ClientBody::new(stops(), Some(Arc::clone(&unread)), false);
        let (body, handle) = body.limited(4, MINUTE);
        drop(body);
        assert!(!unread.closes_connection().await, "it may be sent to another backend");
        drop(handle);
        assert!(unread.closes_connection().await, "no backend can get it");

        let unread = Arc::new(UnreadBody::default());
        let body = ClientBody::new(stops(), Some(Arc::clone(&unread)), false);
        let (mut body, _handle) = body.limited(4, MINUTE);
        assert!(body.frame().await.unwrap().is_err());
        assert!(unread.closes_connection().await, "the reader still has the failed body");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_waits_for_the_client_until_the_part_that_it_asked_for_comes() {
        let (sender, parts) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let stream = futures_util::stream::unfold(parts, |mut parts| async move {
            let part = parts.recv().await?;
            Some((Ok::<_, std::io::Error>(Frame::data(part)), parts))
        });
        let body = StreamBody::new(Box::pin(stream));
        let (mut body, handle) = ClientBody::new(body, None, false).limited(4, MINUTE);
        assert_eq!((handle.waits_for_client(), handle.waited_until()), (false, None));
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, body.frame()).await.is_err());
        assert!(handle.waits_for_client());
        sender.send(Bytes::from_static(b"a")).unwrap();
        body.frame().await.unwrap().unwrap();
        let came = Instant::now();
        tokio::time::advance(second).await;
        assert_eq!((handle.waits_for_client(), handle.waited_until()), (false, Some(came)));
        assert!(tokio::time::timeout(second, body.frame()).await.is_err());
        assert!(handle.waits_for_client());
        drop(sender);
        assert!(body.frame().await.is_none());
        assert!(!handle.waits_for_client(), "the body is whole");
    }
}
