//! [`UnreadBody`]: the rest of a client's body, which is read on after an early answer.
//!
//! A connection that is closed while its client still sends is reset, and the reset may discard an
//! answer that the client has not read yet (RFC 9112, section 9.6).

use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::request_source::RequestSource;

/// Maximum size of a rest that is read before the answer, so that the connection can be kept, in
/// bytes. It is a few segments, which are mostly on their way already.
const MAX_SETTLED: u64 = 64 << 10;
/// How long an early answer waits for such a rest.
const SETTLE_TIME: Duration = Duration::from_millis(20);
/// How long a rest is read after an early answer. Then the connection is closed.
const LINGER_TIME: Duration = Duration::from_secs(10);

/// The rest of the last request's body of an HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct UnreadBody<B = RequestSource> {
    state: Mutex<UnreadState<B>>,
    left: Notify,
}

#[derive(Debug, Default)]
enum UnreadState<B> {
    /// There is no rest.
    #[default]
    None,
    Rest(B),
    /// The rest is read on, or is not read at all: the connection is to be closed.
    Closing,
}

impl<B> Default for UnreadBody<B> {
    fn default() -> UnreadBody<B> {
        UnreadBody { state: Mutex::default(), left: Notify::new() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> UnreadBody<B> {
    /// Leaves a rest. `awaits_continue`: the client waits for `100 Continue`.
    pub(super) fn leave(&self, rest: B, awaits_continue: bool) {
        // Reading would ask the client to send its body.
        *self.state.lock() =
            if awaits_continue { UnreadState::Closing } else { UnreadState::Rest(rest) };
        self.left.notify_one();
    }

    fn take(&self) -> Option<B> {
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
async fn discard(body: &mut (impl Body<Data = Bytes> + Unpin), limit: u64) -> bool {
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
