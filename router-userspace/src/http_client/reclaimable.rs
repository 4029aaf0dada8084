//! [`ReclaimableBody`]: a client's body on its way to a backend, which comes back where nothing of it was read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

/// A body that somebody else may read. Dropped unread, it returns to its owner.
pub(crate) struct ReclaimableBody<B> {
    /// `None` once it has been returned.
    body: Option<B>,
    back: Option<oneshot::Sender<B>>,
}

/// Where an unread body comes back.
pub(crate) struct Reclaim<B>(oneshot::Receiver<B>);

impl<B> ReclaimableBody<B> {
    pub(crate) fn new(body: B) -> (ReclaimableBody<B>, Reclaim<B>) {
        let (back, owner) = oneshot::channel();
        (ReclaimableBody { body: Some(body), back: Some(back) }, Reclaim(owner))
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
        // Whoever asks may be given a part of it, which could not be sent again.
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
            // The owner may have left.
            let _ = back.send(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn an_unread_body_comes_back_and_a_read_one_does_not() {
        let (lent, owner) = ReclaimableBody::new(Full::new(Bytes::from_static(b"a")));
        drop(lent);
        let body = owner.returned().expect("it was not read");
        let (mut lent, owner) = ReclaimableBody::new(body);
        assert_eq!(lent.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        drop(lent);
        assert!(owner.returned().is_none());
    }
}
