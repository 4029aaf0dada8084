//! [`ResponseBody`]: the body of every response of the gateway.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The error of a body. It closes the connection to the client.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is sent as its parts arrive.
pub(crate) type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>;

/// The body of a response.
pub(crate) enum ResponseBody {
    /// All bytes, known in advance.
    Full(Option<Bytes>),
    Streamed(Streamed),
}

impl ResponseBody {
    pub(crate) fn full(bytes: Bytes) -> ResponseBody {
        ResponseBody::Full(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub(crate) fn streamed(
        body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static,
    ) -> ResponseBody {
        ResponseBody::Streamed(Box::pin(body))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            ResponseBody::Full(bytes) => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            ResponseBody::Streamed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Full(bytes) => bytes.is_none(),
            ResponseBody::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            ResponseBody::Streamed(body) => body.size_hint(),
        }
    }
}
