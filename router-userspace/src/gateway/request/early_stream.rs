//! [`EarlyStream`]: the body of a streamed response whose head was sent before its first event.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use router_core::sglang::Endpoint;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::keep_alive::KeepAlive;
use super::record::Record;
use super::reject::Reject;
use super::relay::Relay;
use super::response_body::BodyError;
use super::routed::Reply;
use crate::gateway::shared::Gateway;

/// A generation whose response has not begun.
pub(crate) struct WaitingGeneration {
    /// Its task, which goes on while the client does not read.
    pub running: AbortOnDropHandle<Result<Reply, Reject>>,
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
                if let Poll::Ready(ended) = Pin::new(&mut waiting.running).poll(cx) {
                    let (waiting, record) = *boxed;
                    let reply = ended.unwrap_or_else(|error| Err(ended_early(error)));
                    return match this.begin(waiting.endpoint, reply, record) {
                        Some(events) => Poll::Ready(Some(Ok(Frame::data(events)))),
                        None => Pin::new(this).poll_frame(cx),
                    };
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

/// The reason of a task that ended without a reply: it was cancelled, as the runtime does at its end. A panic
/// is passed on.
fn ended_early(error: JoinError) -> Reject {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Reject::Draining,
    }
}
