//! [`Relay`]: the body that streams decode's events to the client and keeps the leases.
//!
//! Events leave whole and in order, only as fast as the client reads, so that a failure can
//! always be told in a well-formed event. Dropped early, it aborts both legs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use router_core::sglang::Endpoint;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::BodyError;
use super::record::Record;
use super::reject::Reject;
use crate::gateway::upstream::dispatch::{Dispatch, Silence};
use crate::gateway::upstream::fault::{Fault, Kind};
use crate::gateway::upstream::source::Source;

/// How often a silent stream is looked at: its limits, and whether its worker still answers.
const LOOK: Duration = Duration::from_secs(1);

/// When a stream is given up, and how that is said.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    pub endpoint: Endpoint,
    pub idle: Duration,
    pub deadline: Option<Instant>,
}

/// A stream on its way to the client.
pub(crate) struct Relay {
    dispatch: Arc<Dispatch>,
    /// `None` once the stream is over.
    source: Option<Source>,
    patience: Patience,
    last: Instant,
    silence: Silence,
    look: Pin<Box<Sleep>>,
    record: Record,
}

impl Relay {
    pub(crate) fn new(
        dispatch: Arc<Dispatch>,
        source: Source,
        patience: Patience,
        record: Record,
    ) -> Relay {
        let last = Instant::now();
        let silence = Silence::default();
        let look = Box::pin(sleep_until(next_look(last, patience)));
        Relay { dispatch, source: Some(source), patience, last, silence, look, record }
    }

    /// Ends the stream with an event that says why.
    fn fail(&mut self, reject: &Reject) -> Bytes {
        // Dropping the source cancels and aborts what still runs.
        self.source = None;
        self.record.fails(reject.reason(), reject.detail());
        self.record.finishes();
        reject.events(self.patience.endpoint)
    }

    fn fault(&mut self, kind: Kind) -> Option<Reject> {
        let source = self.source.as_ref()?;
        let fault = Fault { leg: source.leg(), worker: Arc::clone(source.worker()), kind };
        self.dispatch.blame(&fault);
        Some(Reject::Fault(fault))
    }

    /// What the clock says against the stream.
    fn overdue(&mut self, now: Instant) -> Option<Reject> {
        if self.patience.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(Reject::Deadline);
        }
        let limit = self.patience.idle;
        if now.duration_since(self.last) >= limit {
            return self.fault(Kind::Late { waited_for: "the next part of its answer", limit });
        }
        let silent = self.source.as_ref().is_some_and(|source| source.worker().health.is_silent());
        let lasts = self.silence.lasts(silent, self.dispatch.timeouts.silent_timeout);
        if lasts { self.fault(Kind::Silent) } else { None }
    }
}

fn next_look(now: Instant, patience: Patience) -> Instant {
    let look = now + LOOK.min(patience.idle);
    patience.deadline.map_or(look, |deadline| look.min(deadline))
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.source.is_some() && this.dispatch.cut.is_cancelled() {
            return Poll::Ready(Some(Ok(Frame::data(this.fail(&Reject::Draining)))));
        }
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        match source.poll_event(cx) {
            Poll::Ready(Some(Ok(event))) => {
                this.last = Instant::now();
                // An engine that is never slow never lets the look below be due.
                if this.patience.deadline.is_some_and(|deadline| this.last >= deadline) {
                    return Poll::Ready(Some(Ok(Frame::data(this.fail(&Reject::Deadline)))));
                }
                this.silence = Silence::default();
                this.record.event(this.last);
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            Poll::Ready(Some(Err(kind))) => {
                let reject = this.fault(kind);
                return Poll::Ready(reject.map(|reject| Ok(Frame::data(this.fail(&reject)))));
            }
            Poll::Ready(None) => {
                if let Some(source) = this.source.take() {
                    source.land();
                }
                this.record.finishes();
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        while this.look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(reject) = this.overdue(now) {
                return Poll::Ready(Some(Ok(Frame::data(this.fail(&reject)))));
            }
            this.look.as_mut().reset(next_look(now, this.patience));
        }
        Poll::Pending
    }
}
