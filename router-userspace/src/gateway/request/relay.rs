//! [`Relay`]: the body that streams decode's events to the client and keeps the leases.
//!
//! Events are sent whole and in order, and only as fast as the client reads, so that a failure can
//! always be sent as a well-formed event. Dropped early, it aborts both legs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use router_core::sglang::Endpoint;
use tokio::time::Instant;

use super::record::Record;
use super::reject::Reject;
use super::response_body::BodyError;
use super::retry::CrashWatch;
use super::stream_watch::{Overdue, StreamWatch, WatchLimits};
use crate::gateway::placement::observe::DecodeObservation;
use crate::gateway::upstream::dispatch::Dispatch;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::source::EventSource;

/// When a stream is given up, and the endpoint whose error format is used.
#[derive(Clone, Copy)]
pub(crate) struct StreamLimits {
    pub endpoint: Endpoint,
    pub watch: WatchLimits,
}

/// A stream on its way to the client.
pub(crate) struct Relay {
    dispatch: Arc<Dispatch>,
    /// `None` once the stream is over.
    source: Option<EventSource>,
    /// The endpoint whose error format is used.
    endpoint: Endpoint,
    watch: StreamWatch,
    /// Updated when the stream has ended well.
    observation: Option<DecodeObservation>,
    /// Notices the crash of the engine in the middle of the stream.
    crash_watch: Option<CrashWatch>,
    record: Record,
}

impl Relay {
    pub(crate) fn new(
        dispatch: Arc<Dispatch>,
        source: EventSource,
        limits: StreamLimits,
        observation: Option<DecodeObservation>,
        record: Record,
    ) -> Relay {
        let StreamLimits { endpoint, watch } = limits;
        let (source, watch) = (Some(source), StreamWatch::new(watch));
        Relay { dispatch, source, endpoint, watch, observation, crash_watch: None, record }
    }

    pub(crate) fn with_crash_watch(self, crash_watch: Option<CrashWatch>) -> Relay {
        Relay { crash_watch, ..self }
    }

    /// Ends the stream with an error event.
    fn fail(&mut self, reject: &Reject) -> Bytes {
        // Dropping the source cancels and aborts what still runs.
        self.source = None;
        self.record.fail(reject.reason(), reject.detail());
        self.record.finish();
        reject.events(self.endpoint)
    }

    fn fault(&mut self, kind: FaultKind) -> Option<Reject> {
        let source = self.source.as_ref()?;
        let fault = Fault { leg: source.leg(), worker: Arc::clone(source.worker()), kind };
        self.dispatch.blame(&fault);
        if fault.broke()
            && let Some(watch) = self.crash_watch.take()
        {
            watch.on_broken(Arc::clone(&fault.worker));
        }
        Some(Reject::Fault(fault))
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.source.is_some() && this.dispatch.drain_exceeded.is_cancelled() {
            return Poll::Ready(Some(Ok(Frame::data(this.fail(&Reject::Draining)))));
        }
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        match source.poll_event(cx) {
            Poll::Ready(Some(Ok(event))) => {
                let now = Instant::now();
                if this.watch.received(now) {
                    return Poll::Ready(Some(Ok(Frame::data(this.fail(&Reject::Deadline)))));
                }
                this.record.event(now);
                Poll::Ready(Some(Ok(Frame::data(event))))
            }
            Poll::Ready(Some(Err(kind))) => {
                let reject = this.fault(kind);
                Poll::Ready(reject.map(|reject| Ok(Frame::data(this.fail(&reject)))))
            }
            Poll::Ready(None) => {
                if let Some(source) = this.source.take() {
                    source.complete();
                }
                if let (Some(observation), Some((events, gap))) =
                    (&this.observation, this.record.pace())
                {
                    observation.observe(events, gap);
                }
                this.record.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let reject = match ready!(this.watch.poll_overdue(cx, source.worker())) {
                    Overdue::Deadline => Some(Reject::Deadline),
                    Overdue::Fault(kind) => this.fault(kind),
                };
                Poll::Ready(reject.map(|reject| Ok(Frame::data(this.fail(&reject)))))
            }
        }
    }
}
