//! [`Relay`]: the body that streams decode's events to the client and keeps the leases.
//!
//! Events are sent whole and in order, and only as fast as the client reads, so that a failure can
//! always be sent as a well-formed event. Dropped early, it aborts both legs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use router_core::sglang::Endpoint;
use tokio::time::{Instant, Sleep, sleep_until};

use super::record::Record;
use super::reject::Reject;
use super::response_body::BodyError;
use super::retry::CrashWatch;
use crate::gateway::placement::observe::DecodeObservation;
use crate::gateway::upstream::dispatch::{Dispatch, Silence};
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::source::EventSource;

/// Interval at which a stream without events is checked: its limits, and its worker's health.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// When a stream is given up, and the endpoint whose error format is used.
#[derive(Clone, Copy)]
pub(crate) struct StreamLimits {
    pub endpoint: Endpoint,
    pub idle: Duration,
    pub deadline: Option<Instant>,
}

/// A stream on its way to the client.
pub(crate) struct Relay {
    dispatch: Arc<Dispatch>,
    /// `None` once the stream is over.
    source: Option<EventSource>,
    limits: StreamLimits,
    /// Updated when the stream has ended well.
    observation: Option<DecodeObservation>,
    /// Notices the crash of the engine in the middle of the stream.
    crash_watch: Option<CrashWatch>,
    last: Instant,
    silence: Silence,
    check: Pin<Box<Sleep>>,
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
        let last = Instant::now();
        let silence = Silence::default();
        let check = Box::pin(sleep_until(next_check(last, limits)));
        let source = Some(source);
        Relay {
            dispatch,
            source,
            limits,
            observation,
            crash_watch: None,
            last,
            silence,
            check,
            record,
        }
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
        reject.events(self.limits.endpoint)
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

    /// Why the stream is to be given up now, if it is.
    fn overdue(&mut self, now: Instant) -> Option<Reject> {
        if self.limits.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(Reject::Deadline);
        }
        let limit = self.limits.idle;
        if now.duration_since(self.last) >= limit {
            return self
                .fault(FaultKind::Timeout { waited_for: "the next part of its answer", limit });
        }
        let silent = self.source.as_ref().is_some_and(|source| source.worker().health.is_silent());
        let lasts = self.silence.lasts(silent, self.dispatch.timeouts.unresponsive_timeout);
        if lasts { self.fault(FaultKind::Silent) } else { None }
    }
}

fn next_check(now: Instant, limits: StreamLimits) -> Instant {
    let check = now + CHECK_INTERVAL.min(limits.idle);
    limits.deadline.map_or(check, |deadline| check.min(deadline))
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
                this.last = Instant::now();
                // The check below runs only while no event is ready.
                if this.limits.deadline.is_some_and(|deadline| this.last >= deadline) {
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
                    source.complete();
                }
                if let (Some(observation), Some((events, gap))) =
                    (&this.observation, this.record.pace())
                {
                    observation.observe(events, gap);
                }
                this.record.finish();
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        while this.check.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(reject) = this.overdue(now) {
                return Poll::Ready(Some(Ok(Frame::data(this.fail(&reject)))));
            }
            this.check.as_mut().reset(next_check(now, this.limits));
        }
        Poll::Pending
    }
}
