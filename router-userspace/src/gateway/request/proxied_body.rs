//! [`ProxiedBody`]: the body of a backend's answer, passed on to the client as it comes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use router_core::fleet::Lease;
use tokio::time::{Instant, Sleep, sleep_until};

use super::record::Record;
use super::response_body::BodyError;
use crate::http_client::innermost;

/// A backend's body on its way to the client. It keeps the lease until the body ends.
pub(crate) struct ProxiedBody {
    body: Incoming,
    lease: Option<Lease>,
    deadline: Option<Instant>,
}

impl ProxiedBody {
    pub(crate) fn new(body: Incoming, lease: Lease, deadline: Option<Instant>) -> ProxiedBody {
        ProxiedBody { body, lease: Some(lease), deadline }
    }

    /// Completes `record` when the body ends, and ends the body at its deadline.
    pub(crate) fn recorded(self, record: Record) -> RecordedBody {
        let deadline = self.deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        RecordedBody { proxied: self, record: Some(record), deadline }
    }
}

/// [`ProxiedBody`] with the request's log record, ended at the route's deadline.
pub(crate) struct RecordedBody {
    proxied: ProxiedBody,
    record: Option<Record>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl RecordedBody {
    fn end(&mut self, failure: Option<(&'static str, String)>) {
        self.proxied.lease = None;
        if let Some(mut record) = self.record.take() {
            if let Some((reason, detail)) = failure {
                record.fail(reason, detail);
            }
            record.finish();
        }
    }
}

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.end(Some(("request_timeout", "the route's deadline has passed".to_owned())));
            return Poll::Ready(Some(Err("the request took longer than its route allows".into())));
        }
        match ready!(Pin::new(&mut this.proxied.body).poll_frame(cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => {
                this.end(Some(("engine_broken", innermost(&error))));
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.end(None);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.proxied.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.proxied.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        // hyper does not poll a body whose announced length is reached, or that is empty.
        if self.proxied.body.is_end_stream() {
            self.end(None);
        }
    }
}
