//! [`RequestSource`]: where the body of a request comes from.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The bytes of a request's body.
#[derive(Debug)]
pub(crate) enum RequestSource {
    /// A client sends them.
    Client(Incoming),
    /// They were copied from another request; `None` once they are read.
    Copied(Option<Bytes>),
}

impl Body for RequestSource {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            RequestSource::Client(body) => Pin::new(body).poll_frame(cx),
            RequestSource::Copied(bytes) => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestSource::Client(body) => body.is_end_stream(),
            RequestSource::Copied(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestSource::Client(body) => body.size_hint(),
            RequestSource::Copied(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
