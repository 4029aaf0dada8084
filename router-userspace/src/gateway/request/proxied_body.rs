//! [`ProxiedBody`]: the body of a backend's answer, passed on to the client as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use router_core::fleet::Lease;
use tokio::time::{Instant, Sleep, sleep_until};

use super::record::Record;
use super::reject::Reject;
use super::response_body::BodyError;
use crate::gateway::upstream::dispatch::Silence;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::http_client::innermost;

/// Interval at which an answer of which no part comes is checked: its limits, and its worker's health.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// When an answer that is passed on is given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProxyLimits {
    pub deadline: Option<Instant>,
    /// Maximum time between two parts.
    pub idle: Duration,
    /// Maximum time in which the worker answers no probe.
    pub unresponsive: Duration,
}

/// A backend's body on its way to the client. It keeps the lease until the body ends.
pub(crate) struct ProxiedBody {
    body: Incoming,
    lease: Option<Lease>,
    limits: ProxyLimits,
}

impl ProxiedBody {
    pub(crate) fn new(body: Incoming, lease: Lease, limits: ProxyLimits) -> ProxiedBody {
        ProxiedBody { body, lease: Some(lease), limits }
    }

    /// Completes `record` when the body ends, and ends the body at its limits.
    pub(crate) fn recorded(self, record: Record) -> RecordedBody {
        let silence = Silence::default();
        RecordedBody { proxied: self, record: Some(record), waiting: None, silence, check: None }
    }
}

/// [`ProxiedBody`] with the request's log record, ended at its limits.
pub(crate) struct RecordedBody {
    proxied: ProxiedBody,
    record: Option<Record>,
    /// Since when the next part is waited for.
    waiting: Option<Instant>,
    silence: Silence,
    /// `None` until a part is waited for.
    check: Option<Pin<Box<Sleep>>>,
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

    fn fault(&self, kind: FaultKind) -> Option<Reject> {
        let worker = Arc::clone(self.proxied.lease.as_ref()?.worker());
        Some(Reject::Fault(Fault { leg: None, worker, kind }))
    }

    /// Why the answer is to be given up now, if it is.
    fn overdue(&mut self, now: Instant) -> Option<Reject> {
        let limits = self.proxied.limits;
        if limits.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(Reject::Deadline);
        }
        let waited = self.waiting.map(|since| now.duration_since(since));
        if waited.is_some_and(|waited| waited >= limits.idle) {
            let waited_for = "the next part of its answer";
            return self.fault(FaultKind::Timeout { waited_for, limit: limits.idle });
        }
        let silent = self.proxied.lease.as_ref().is_some_and(|l| l.worker().health.is_silent());
        let lasts = self.silence.lasts(silent, limits.unresponsive);
        if lasts { self.fault(FaultKind::Silent) } else { None }
    }

    /// Why the answer is given up while its next part is waited for.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Reject> {
        let now = Instant::now();
        self.waiting.get_or_insert(now);
        let limits = self.proxied.limits;
        let mut check =
            self.check.take().unwrap_or_else(|| Box::pin(sleep_until(limits.next(now))));
        while check.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(reject) = self.overdue(now) {
                return Poll::Ready(reject);
            }
            check.as_mut().reset(limits.next(now));
        }
        self.check = Some(check);
        Poll::Pending
    }
}

impl ProxyLimits {
    /// When the limits are checked next.
    fn next(self, now: Instant) -> Instant {
        let check = now + CHECK_INTERVAL.min(self.idle);
        self.deadline.map_or(check, |deadline| check.min(deadline))
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
        match Pin::new(&mut this.proxied.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting = None;
                // The check above runs only while no part is ready.
                let deadline = this.proxied.limits.deadline;
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
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
            Poll::Pending => {
                let reject = ready!(this.poll_overdue(cx));
                Poll::Ready(Some(Err(this.fail(&reject))))
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
