//! [`ProxiedBody`]: the body of a backend's answer, passed on to the client as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use router_core::fleet::Lease;
use tokio::time::Instant;

use super::record::Record;
use super::reject::Reject;
use super::response_body::BodyError;
use super::stream_watch::{Overdue, StreamWatch, WatchLimits};
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::http_client::innermost;

/// A backend's body on its way to the client. It keeps the lease until the body ends.
pub(crate) struct ProxiedBody {
    body: Incoming,
    /// `None` once the body has ended.
    lease: Option<Lease>,
    limits: WatchLimits,
}

impl ProxiedBody {
    pub(crate) fn new(body: Incoming, lease: Lease, limits: WatchLimits) -> ProxiedBody {
        ProxiedBody { body, lease: Some(lease), limits }
    }

    /// Completes `record` when the body ends, and ends the body at its limits.
    pub(crate) fn recorded(self, record: Record) -> RecordedBody {
        let watch = StreamWatch::new(self.limits);
        RecordedBody { proxied: self, record: Some(record), watch }
    }
}

/// [`ProxiedBody`] with the request's log record, ended at its limits.
pub(crate) struct RecordedBody {
    proxied: ProxiedBody,
    record: Option<Record>,
    watch: StreamWatch,
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

    /// Ends the body with an error, which closes the connection to the client.
    fn fail(&mut self, reject: &Reject) -> BodyError {
        self.end(Some((reject.reason(), reject.detail())));
        reject.message().into()
    }

    /// Ends the body because of its worker.
    fn fail_by(&mut self, kind: FaultKind) -> Option<BodyError> {
        let worker = Arc::clone(self.proxied.lease.as_ref()?.worker());
        Some(self.fail(&Reject::Fault(Fault { leg: None, worker, kind })))
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
        let Some(lease) = &this.proxied.lease else { return Poll::Ready(None) };
        match Pin::new(&mut this.proxied.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if this.watch.received(Instant::now()) {
                    return Poll::Ready(Some(Err(this.fail(&Reject::Deadline))));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.end(Some(("engine_broken", innermost(&error))));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.end(None);
                Poll::Ready(None)
            }
            Poll::Pending => match ready!(this.watch.poll_overdue(cx, lease.worker())) {
                Overdue::Deadline => Poll::Ready(Some(Err(this.fail(&Reject::Deadline)))),
                Overdue::Fault(kind) => Poll::Ready(this.fail_by(kind).map(Err)),
            },
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
