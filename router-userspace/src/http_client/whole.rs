//! A request body of known bytes, sent piece by piece without copying it.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use router_core::sglang::SplicedBody;

/// Learns that a body was written to its connection.
pub(crate) trait OnWritten: Debug + Send + Sync {
    /// The connection has taken the last byte. 64 KiB and its last piece may wait there for the
    /// socket.
    fn written(&self);
}

/// A body whose pieces share the client's buffer.
#[derive(Debug)]
pub(crate) struct WholeBody {
    body: SplicedBody,
    /// Number of the next piece.
    next: usize,
    /// Bytes that are not sent yet.
    left: usize,
    /// Called once, with the last piece.
    on_written: Option<Arc<dyn OnWritten>>,
}

impl WholeBody {
    pub(crate) fn new(body: SplicedBody, on_written: Option<Arc<dyn OnWritten>>) -> WholeBody {
        WholeBody { left: body.len(), body, next: 0, on_written }
    }
}

impl Body for WholeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while self.left > 0 {
            let Some(piece) = self.body.piece(self.next) else { break };
            self.next += 1;
            if !piece.is_empty() {
                self.left -= piece.len();
                if self.left == 0
                    && let Some(last) = self.on_written.take()
                {
                    last.written();
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}
