//! [`EventSource`]: the events of a streamed answer, of one engine or merged from n samples.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use router_core::fleet::Worker;
use router_core::pair::Leg;
use router_core::sglang::logprob::PromptLogprobs;
use router_core::sglang::{Endpoint, fault, merge, sse};

use super::fault::FaultKind;
use super::first_event::EventStream;
use super::in_flight::InFlight;
use super::leg::error_after_head;

/// Maximum size of an event that may be `[DONE]`, in bytes.
const MAX_DONE: usize = 64;

/// The events of one sample, and its requests at the engines.
pub(crate) struct Sample {
    endpoint: Endpoint,
    /// The events that were read before the response was passed on.
    first: VecDeque<Bytes>,
    events: EventStream,
    /// The prompt's logprobs of prefill's answer, if the client wants them.
    logprobs: Option<PromptLogprobs>,
    in_flight: InFlight,
    /// `[DONE]` was received, or the endpoint does not send it.
    done: bool,
}

impl Sample {
    pub(crate) fn new(
        endpoint: Endpoint,
        first: VecDeque<Bytes>,
        events: EventStream,
        logprobs: Option<PromptLogprobs>,
        in_flight: InFlight,
    ) -> Sample {
        Sample { endpoint, first, events, logprobs, in_flight, done: !endpoint.sends_done() }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FaultKind>>> {
        let event = match self.first.pop_front() {
            Some(first) => Some(Ok(first)),
            None => std::task::ready!(self.events.poll_next(cx)),
        };
        let event = match event {
            Some(Ok(event)) => event,
            None if !self.done => {
                let why = "the stream ended without [DONE]".to_owned();
                return Poll::Ready(Some(Err(FaultKind::Broken(why))));
            }
            end => return Poll::Ready(end),
        };
        self.done |= event.len() < MAX_DONE && sse::is_done(&event);
        // The error is rewritten: the engine's message contains addresses of its peers.
        if let Some(error) = fault::event_fault(self.endpoint, &event) {
            return Poll::Ready(Some(Err(error_after_head(error))));
        }
        Poll::Ready(Some(Ok(match &mut self.logprobs {
            Some(logprobs) => logprobs.merge_event(event),
            None => event,
        })))
    }
}

/// The events of an answer.
pub(crate) enum EventSource {
    Single(Box<Sample>),
    Merged(Box<MergedSamples>),
}

impl EventSource {
    pub(crate) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, FaultKind>>> {
        match self {
            EventSource::Single(sample) => sample.poll_event(cx),
            EventSource::Merged(merged) => merged.poll_event(cx),
        }
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        match self {
            EventSource::Single(sample) => sample.in_flight.worker(),
            EventSource::Merged(merged) => merged.worker(),
        }
    }

    pub(crate) fn leg(&self) -> Option<Leg> {
        match self {
            EventSource::Single(sample) => sample.in_flight.leg(),
            EventSource::Merged(_) => Some(Leg::Decode),
        }
    }

    /// The answer is whole: nothing is aborted.
    pub(crate) fn complete(self) {
        match self {
            EventSource::Single(sample) => sample.in_flight.complete(),
            EventSource::Merged(merged) => {
                for sample in merged.samples {
                    sample.in_flight.complete();
                }
            }
        }
    }
}

/// n samples of one prompt, as one stream.
pub(crate) struct MergedSamples {
    /// `None` once the merged stream has ended.
    merge: Option<merge::StreamMerger>,
    samples: Vec<Sample>,
    /// The samples that have not ended, in the order of their turns.
    open: VecDeque<usize>,
}

impl MergedSamples {
    pub(crate) fn new(endpoint: Endpoint, samples: Vec<Sample>) -> MergedSamples {
        let count = u32::try_from(samples.len()).unwrap_or(u32::MAX);
        let open = (0..samples.len()).collect();
        MergedSamples { merge: Some(merge::StreamMerger::new(endpoint, count)), samples, open }
    }

    fn worker(&self) -> &Arc<Worker> {
        // All samples are on one pair, and there are at least two of them.
        self.samples[0].in_flight.worker()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FaultKind>>> {
        let Some(merge) = &mut self.merge else { return Poll::Ready(None) };
        let mut waiting = 0;
        while waiting < self.open.len() {
            // Round robin, so that one fast sample does not delay the others.
            let Some(k) = self.open.pop_front() else { break };
            let event = match self.samples[k].poll_event(cx) {
                Poll::Ready(None) => continue,
                Poll::Ready(Some(event)) => Some(event),
                Poll::Pending => None,
            };
            self.open.push_back(k);
            match event {
                None => waiting += 1,
                Some(Err(kind)) => return Poll::Ready(Some(Err(kind))),
                Some(Ok(event)) => {
                    waiting = 0;
                    match merge.push(k, &event) {
                        Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Some(Err(error_after_head(error)))),
                    }
                }
            }
        }
        if !self.open.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(self.merge.take().map(|merge| Ok(merge.finish())))
    }
}
