//! [`ReclaimableBody`]: a client's body on its way to a backend, which can be reclaimed if no part
//! of it was read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

/// A body that the HTTP client may read. If it is dropped unread, its [`Reclaim`] gets it back.
pub(crate) struct ReclaimableBody<B> {
    /// `None` once it has been given back.
    body: Option<B>,
    back: Option<oneshot::Sender<B>>,
}

/// Gets an unread body back.
pub(crate) struct Reclaim<B>(oneshot::Receiver<B>);

impl<B> ReclaimableBody<B> {
    pub(crate) fn new(body: B) -> (ReclaimableBody<B>, Reclaim<B>) {
        let (back, reclaim) = oneshot::channel();
        (ReclaimableBody { body: Some(body), back: Some(back) }, Reclaim(reclaim))
    }
}

impl<B> Reclaim<B> {
    /// The body, if it was dropped unread.
    pub(crate) fn returned(mut self) -> Option<B> {
        self.0.try_recv().ok()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ReclaimableBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // The reader may get a part of the body, which could not be sent again.
        self.back = None;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl<B> Drop for ReclaimableBody<B> {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            // The receiver may have been dropped.
            let _ = back.send(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn an_unread_body_is_reclaimed_and_a_read_one_is_not() {
        let (sent, reclaim) = ReclaimableBody::new(Full::new(Bytes::from_static(b"a")));
        drop(sent);
        let body = reclaim.returned().expect("it was not read");
        let (mut sent, reclaim) = ReclaimableBody::new(body);
        assert_eq!(sent.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        drop(sent);
        assert!(reclaim.returned().is_none());
    }
}
