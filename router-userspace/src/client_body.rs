//! [`ClientBody`]: the body of a client's request, whose rest is read on after an early answer.
//!
//! A connection that is closed while its client still sends is reset, and the reset may discard an
//! answer that the client has not read yet (RFC 9112, section 9.6).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::http_client::innermost;

/// Maximum size of a rest that is read before the answer, so that the connection can be kept, in
/// bytes. It is a few segments, which are mostly on their way already.
const MAX_SETTLED: u64 = 64 << 10;
/// How long an early answer waits for such a rest.
const SETTLE_TIME: Duration = Duration::from_millis(20);
/// How long a rest is read after an early answer. Then the connection is closed.
const LINGER_TIME: Duration = Duration::from_secs(10);

/// The client broke its body, or left while it sent it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ClientBodyError(String);

/// The body of a client's request. Dropped before its end, it leaves the rest to [`UnreadBody`].
pub(crate) struct ClientBody {
    /// `None` once it has ended or failed.
    body: Option<Incoming>,
    /// `None` for HTTP/2, which resets a stream without the connection.
    unread: Option<Arc<UnreadBody>>,
    /// The client waits for `100 Continue`, which is sent when the body is read.
    awaits_continue: bool,
}

impl ClientBody {
    pub(crate) fn new(
        body: Incoming,
        unread: Option<Arc<UnreadBody>>,
        awaits_continue: bool,
    ) -> ClientBody {
        ClientBody { body: Some(body), unread, awaits_continue }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        self.awaits_continue = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match std::task::ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => {
                self.body = None;
                Poll::Ready(Some(Err(ClientBodyError(innermost(&error)))))
            }
            None => {
                self.body = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let (Some(body), Some(unread)) = (self.body.take(), self.unread.take()) else { return };
        if !body.is_end_stream() {
            unread.leave(body, self.awaits_continue);
        }
    }
}

/// The rest of the last request's body of an HTTP/1 connection.
#[derive(Debug, Default)]
pub(crate) struct UnreadBody {
    state: Mutex<UnreadState>,
    left: Notify,
}

#[derive(Debug, Default)]
enum UnreadState {
    /// There is no rest.
    #[default]
    None,
    Rest(Incoming),
    /// The rest is read on, or is not read at all: the connection is to be closed.
    Closing,
}

impl UnreadBody {
    fn leave(&self, rest: Incoming, awaits_continue: bool) {
        // Reading would ask the client to send its body.
        *self.state.lock() =
            if awaits_continue { UnreadState::Closing } else { UnreadState::Rest(rest) };
        self.left.notify_one();
    }

    fn take(&self) -> Option<Incoming> {
        let mut state = self.state.lock();
        match std::mem::take(&mut *state) {
            UnreadState::Rest(rest) => {
                *state = UnreadState::Closing;
                Some(rest)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// Whether the answer is to say that the connection closes after it. A short rest is read first.
    pub(crate) async fn closes_connection(&self) -> bool {
        if matches!(*self.state.lock(), UnreadState::None) {
            return false;
        }
        let Some(mut rest) = self.take() else { return true };
        let is_short = rest.size_hint().lower() <= MAX_SETTLED;
        let read = is_short
            && timeout(SETTLE_TIME, discard(&mut rest, MAX_SETTLED)).await.is_ok_and(|whole| whole);
        if read {
            *self.state.lock() = UnreadState::None;
        } else {
            self.leave(rest, false);
        }
        !read
    }

    /// Reads the rests that are left, each for a moment; never resolves.
    pub(crate) async fn linger(&self) {
        loop {
            self.left.notified().await;
            if let Some(mut rest) = self.take() {
                let _ = timeout(LINGER_TIME, discard(&mut rest, u64::MAX)).await;
            }
        }
    }
}

/// Reads up to `limit` bytes and returns whether the body has ended.
async fn discard(body: &mut Incoming, limit: u64) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > limit {
            return false;
        }
    }
    true
}
