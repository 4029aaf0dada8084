//! [`Relay`]: the body that streams decode's events to the client and keeps the leases.
//!
//! Events are sent whole and in order, and only as fast as the client reads, so that a failure can
//! always be sent as a well-formed event. Dropped early, it aborts both legs.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use router_core::fleet::RequestKind;
use router_core::sglang::{Endpoint, sse};
use tokio::time::Instant;

use super::event_batch::EventBatch;
use super::keep_alive::KeepAlive;
use super::record::Record;
use super::reject::Reject;
use super::response_body::BodyError;
use super::retry::CrashWatch;
use super::stream_watch::{Overdue, StreamWatch, WatchLimits};
use crate::gateway::placement::observe::DecodeObservation;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::dispatch::Dispatch;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::source::EventSource;

/// When a stream is given up, and the endpoint whose error format is used.
#[derive(Clone, Copy)]
pub(crate) struct StreamLimits {
    pub endpoint: Endpoint,
    pub watch: WatchLimits,
}

/// A stream of events of an engine, and what is watched while it is relayed.
pub(crate) struct RelayedEvents {
    pub source: EventSource,
    pub limits: StreamLimits,
    /// Updated when the stream has ended well.
    pub observation: Option<DecodeObservation>,
    /// Notices the crash of the engine in the middle of the stream.
    pub crash_watch: Option<CrashWatch>,
}

/// A stream on its way to the client.
pub(crate) struct Relay {
    dispatch: Arc<Dispatch>,
    /// `None` once the stream is over.
    source: Option<EventSource>,
    /// The endpoint whose error format is used.
    endpoint: Endpoint,
    watch: StreamWatch,
    batch: EventBatch,
    observation: Option<DecodeObservation>,
    crash_watch: Option<CrashWatch>,
    /// `None` without `--sse-ping-interval`.
    keep_alive: Option<KeepAlive>,
    record: Record,
}

impl Relay {
    pub(crate) fn new(gateway: &Gateway, events: RelayedEvents, record: Record) -> Relay {
        let RelayedEvents { source, limits, observation, crash_watch } = events;
        let interval = gateway.settings.http.sse_ping_interval;
        let keep_alive =
            interval.map(|interval| KeepAlive::new(Instant::now() + interval, interval));
        Relay {
            dispatch: Arc::clone(&gateway.dispatch),
            source: Some(source),
            endpoint: limits.endpoint,
            watch: StreamWatch::new(limits.watch),
            batch: EventBatch::default(),
            observation,
            crash_watch,
            keep_alive,
            record,
        }
    }

    /// Ends the stream with an error event. Returns it after the events that are not sent yet.
    fn fail(&mut self, reject: &Reject) -> Bytes {
        // Dropping the source cancels and aborts what still runs.
        self.source = None;
        self.record.fail(reject.reason(), reject.detail());
        self.record.finish();
        self.batch.push(reject.events(self.endpoint));
        self.batch.take(Instant::now()).unwrap_or_default()
    }

    /// Adds an event to the batch. Returns what is to be sent now.
    fn receive(&mut self, event: Bytes, now: Instant) -> Option<Bytes> {
        if self.watch.received(now) {
            return Some(self.fail(&Reject::Deadline));
        }
        if let Some(keep_alive) = &mut self.keep_alive {
            keep_alive.sent(now);
        }
        if !sse::is_comment(&event) {
            self.record.event(now, event.len());
        }
        if self.batch.push(event) { self.batch.take(now) } else { None }
    }

    /// While no event is ready: the end of a stream that is given up, or a comment that keeps it alive.
    fn poll_waiting(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(source) = &self.source else { return Poll::Ready(None) };
        let Poll::Ready(overdue) = self.watch.poll_overdue(cx, source.worker()) else {
            let Some(keep_alive) = &mut self.keep_alive else { return Poll::Pending };
            return keep_alive.poll_ping(cx).map(|ping| Some(Ok(Frame::data(ping))));
        };
        let reject = match overdue {
            Overdue::Deadline => Some(Reject::Deadline),
            Overdue::Fault(kind) => self.fault(kind),
        };
        Poll::Ready(reject.map(|reject| Ok(Frame::data(self.fail(&reject)))))
    }

    /// The answer is whole.
    fn complete(&mut self) {
        if let Some(source) = self.source.take() {
            source.complete();
        }
        if let (Some(observation), Some((events, gap))) = (&self.observation, self.record.pace()) {
            observation.observe(events, gap);
        }
        self.record.finish();
    }

    fn fault(&mut self, kind: FaultKind) -> Option<Reject> {
        let source = self.source.as_ref()?;
        let fault = Fault { leg: source.leg(), worker: Arc::clone(source.worker()), kind };
        self.dispatch.blame(&fault, RequestKind::Generation);
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
        let mut received = None;
        loop {
            let Some(source) = &mut this.source else { return Poll::Ready(None) };
            match source.poll_event(cx) {
                Poll::Ready(Some(Ok(event))) => {
                    // What is ready at once has come together.
                    let now = *received.get_or_insert_with(Instant::now);
                    if let Some(events) = this.receive(event, now) {
                        return Poll::Ready(Some(Ok(Frame::data(events))));
                    }
                }
                Poll::Ready(Some(Err(kind))) => {
                    let reject = this.fault(kind);
                    return Poll::Ready(reject.map(|reject| Ok(Frame::data(this.fail(&reject)))));
                }
                Poll::Ready(None) => {
                    this.complete();
                    let rest = this.batch.take(Instant::now());
                    return Poll::Ready(rest.map(|events| Ok(Frame::data(events))));
                }
                Poll::Pending => {
                    if let Some(events) = ready!(this.batch.poll_take(cx)) {
                        return Poll::Ready(Some(Ok(Frame::data(events))));
                    }
                    return this.poll_waiting(cx);
                }
            }
        }
    }
}
