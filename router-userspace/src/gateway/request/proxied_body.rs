//! [`ProxiedBody`]: the body of a backend's answer, passed on to the client as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use router_core::fleet::Lease;
use tokio::time::Instant;

use super::record::Record;
use super::reject::Reject;
use super::response_body::BodyError;
use super::stream_watch::{Overdue, StreamWatch, WatchLimits};
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::http_client::client_body::BodyHandle;
use crate::http_client::innermost;
use crate::http_client::received_body::ReceivedBody;

/// A backend's body on its way to the client. It keeps the lease until the body ends.
pub(crate) struct ProxiedBody {
    body: ReceivedBody,
    /// `None` once the body has ended.
    lease: Option<Lease>,
    limits: WatchLimits,
    /// The body of the request, if the client may still be sending it.
    upload: Option<BodyHandle>,
    /// The response's status is a success.
    is_success: bool,
}

impl ProxiedBody {
    pub(crate) fn new(
        body: ReceivedBody,
        lease: Lease,
        limits: WatchLimits,
        upload: Option<BodyHandle>,
        is_success: bool,
    ) -> ProxiedBody {
        ProxiedBody { body, lease: Some(lease), limits, upload, is_success }
    }

    /// Completes `record` when the body ends, and ends the body at its limits.
    pub(crate) fn recorded(self, record: Record, gateway: Arc<Gateway>) -> RecordedBody {
        let watch = StreamWatch::new(self.limits);
        RecordedBody { proxied: self, gateway, record: Some(record), watch }
    }
}

/// [`ProxiedBody`] with the request's log record, ended at its limits.
pub(crate) struct RecordedBody {
    proxied: ProxiedBody,
    gateway: Arc<Gateway>,
    record: Option<Record>,
    watch: StreamWatch,
}

impl RecordedBody {
    /// The body is whole.
    fn complete(&mut self) {
        if let Some(lease) = self.proxied.lease.take() {
            self.gateway.forwarded(lease.worker(), self.proxied.is_success);
        }
        if let Some(mut record) = self.record.take() {
            record.finish();
        }
    }

    /// Ends the body with an error, which closes the connection to the client.
    fn fail(&mut self, reject: &Reject) -> BodyError {
        self.proxied.lease = None;
        if let Some(mut record) = self.record.take() {
            record.fail(reject.reason(), reject.detail());
            record.finish();
        }
        reject.message().into()
    }

    /// Ends the body because of its worker, and updates the worker's health. If the client's own body has
    /// failed, which ends the connection to the worker, the client is at fault.
    fn fail_by(&mut self, kind: FaultKind) -> Option<BodyError> {
        if let Some(error) = self.proxied.upload.as_ref().and_then(BodyHandle::error) {
            return Some(self.fail(&error.into()));
        }
        let worker = Arc::clone(self.proxied.lease.as_ref()?.worker());
        let fault = Fault { leg: None, worker, kind };
        // A backend may need the rest of the request for the rest of its answer.
        let waits = self.proxied.upload.as_ref().is_some_and(BodyHandle::waits_for_client);
        if !(waits && fault.is_timeout()) {
            self.gateway.blame_forwarded(&fault);
        }
        Some(self.fail(&Reject::Fault(fault)))
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
                Poll::Ready(this.fail_by(FaultKind::Broken(innermost(&error))).map(Err))
            }
            Poll::Ready(None) => {
                this.complete();
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
            self.complete();
        }
    }
}
