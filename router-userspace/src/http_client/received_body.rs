//! [`ReceivedBody`]: the body of a response, which gives its connection back once it was read to its end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::idle_connections::Borrowed;

/// The body of a response. Dropped before its end, it closes a connection of HTTP/1.1, and resets a stream of
/// HTTP/2.
#[derive(Debug)]
pub(crate) struct ReceivedBody {
    body: Incoming,
    /// The connection of HTTP/1.1 that sends the body; `None` at its end, and for HTTP/2.
    connection: Option<Box<Borrowed>>,
}

impl ReceivedBody {
    pub(super) fn new(body: Incoming, connection: Option<Borrowed>) -> ReceivedBody {
        let mut received = ReceivedBody { body, connection: connection.map(Box::new) };
        received.give_back_at_end();
        received
    }

    fn give_back_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(connection) = self.connection.take()
        {
            connection.give_back();
        }
    }
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) => self.give_back_at_end(),
            // A chunked body ends without having said so before.
            Poll::Ready(None) => {
                if let Some(connection) = self.connection.take() {
                    connection.give_back();
                }
            }
            Poll::Ready(Some(Err(_))) => self.connection = None,
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
