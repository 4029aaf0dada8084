//! [`EarlyStream`]: the body of a streamed response whose head was sent before its first event.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use router_core::sglang::Endpoint;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::keep_alive::KeepAlive;
use super::record::{AttemptRecord, Record};
use super::reject::Reject;
use super::relay::Relay;
use super::response_body::BodyError;
use super::routed::Reply;
use crate::gateway::shared::Gateway;

/// A generation that runs: its reply, and what is recorded of its attempts.
pub(crate) type RunningGeneration =
    Pin<Box<dyn Future<Output = (Result<Reply, Reject>, AttemptRecord)> + Send>>;

/// A generation whose response has not begun.
pub(crate) struct WaitingGeneration {
    pub running: RunningGeneration,
    /// Comments of the engines.
    pub comments: mpsc::Receiver<Bytes>,
    /// The endpoint whose error format is used.
    pub endpoint: Endpoint,
    pub keep_alive: KeepAlive,
}

/// Sends comments until the response begins, and then its events.
pub(crate) struct EarlyStream {
    gateway: Arc<Gateway>,
    state: State,
}

enum State {
    Waiting(Box<(WaitingGeneration, Record)>),
    Streaming(Box<Relay>),
    Done,
}

impl EarlyStream {
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        waiting: WaitingGeneration,
        record: Record,
    ) -> EarlyStream {
        EarlyStream { gateway, state: State::Waiting(Box::new((waiting, record))) }
    }

    /// The generation has a reply. Returns the event that ends the stream if it failed.
    fn begin(
        &mut self,
        endpoint: Endpoint,
        reply: Result<Reply, Reject>,
        mut record: Record,
    ) -> Option<Bytes> {
        let reject = match reply {
            Ok(Reply::Events { events, .. }) => {
                self.state = State::Streaming(Box::new(Relay::new(&self.gateway, events, record)));
                return None;
            }
            Ok(_) => Reject::NoStream,
            Err(reject) => reject,
        };
        record.fail(reject.reason(), reject.detail());
        record.finish();
        Some(reject.events(endpoint))
    }
}

impl Body for EarlyStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match std::mem::replace(&mut this.state, State::Done) {
            State::Waiting(mut boxed) => {
                let (waiting, _) = &mut *boxed;
                if let Poll::Ready(Some(comment)) = waiting.comments.poll_recv(cx) {
                    waiting.keep_alive.sent(Instant::now());
                    this.state = State::Waiting(boxed);
                    return Poll::Ready(Some(Ok(Frame::data(comment))));
                }
                if let Poll::Ready((reply, attempts)) = waiting.running.as_mut().poll(cx) {
                    let (mut waiting, mut record) = *boxed;
                    record.attempts = attempts;
                    let mut last = BytesMut::new();
                    // The comments that came since, in the same poll as the reply.
                    while let Ok(comment) = waiting.comments.try_recv() {
                        last.extend_from_slice(&comment);
                    }
                    if let Some(events) = this.begin(waiting.endpoint, reply, record) {
                        last.extend_from_slice(&events);
                    }
                    if last.is_empty() {
                        return Pin::new(this).poll_frame(cx);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(last.freeze()))));
                }
                let ping = waiting.keep_alive.poll_ping(cx);
                this.state = State::Waiting(boxed);
                ping.map(|ping| Some(Ok(Frame::data(ping))))
            }
            State::Streaming(mut relay) => {
                let frame = Pin::new(&mut *relay).poll_frame(cx);
                this.state = State::Streaming(relay);
                frame
            }
            State::Done => Poll::Ready(None),
        }
    }
}
