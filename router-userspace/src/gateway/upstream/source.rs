//! [`Source`]: where a streamed answer's events come from: one engine, or n samples made one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use router_core::fleet::Worker;
use router_core::pair::Leg;
use router_core::sglang::logprob::InputLogprobs;
use router_core::sglang::{Endpoint, fault, merge, sse};

use super::fault::Kind;
use super::first_event::Events;
use super::in_flight::Flight;
use super::leg::told_late;

/// No longer event is looked at for `[DONE]`.
const MAX_DONE: usize = 64;

/// One sample's events, with what keeps it alive at the engines.
pub(crate) struct Sample {
    endpoint: Endpoint,
    /// The events that were held.
    first: VecDeque<Bytes>,
    events: Events,
    /// Prefill's part of the prompt's logprobs, where the client wants them.
    logprobs: Option<InputLogprobs>,
    flight: Flight,
    /// `[DONE]` has come, or is not to be expected.
    done: bool,
}

impl Sample {
    pub(crate) fn new(
        endpoint: Endpoint,
        first: VecDeque<Bytes>,
        events: Events,
        logprobs: Option<InputLogprobs>,
        flight: Flight,
    ) -> Sample {
        Sample { endpoint, first, events, logprobs, flight, done: !endpoint.sends_done() }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Kind>>> {
        let event = match self.first.pop_front() {
            Some(first) => Some(Ok(first)),
            None => std::task::ready!(self.events.poll_next(cx)),
        };
        let event = match event {
            Some(Ok(event)) => event,
            None if !self.done => {
                let why = "the stream ended without [DONE]".to_owned();
                return Poll::Ready(Some(Err(Kind::Broken(why))));
            }
            end => return Poll::Ready(end),
        };
        self.done |= event.len() < MAX_DONE && sse::is_done(&event);
        // In the gateway's own words: the engine's name its peers' addresses.
        if let Some(told) = fault::event_fault(self.endpoint, &event) {
            return Poll::Ready(Some(Err(told_late(told))));
        }
        Poll::Ready(Some(Ok(match &self.logprobs {
            Some(logprobs) => logprobs.merge_event(event),
            None => event,
        })))
    }
}

/// The events of an answer.
pub(crate) enum Source {
    One(Box<Sample>),
    Many(Box<Many>),
}

impl Source {
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Kind>>> {
        match self {
            Source::One(sample) => sample.poll_event(cx),
            Source::Many(many) => many.poll_event(cx),
        }
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        match self {
            Source::One(sample) => sample.flight.worker(),
            Source::Many(many) => many.worker(),
        }
    }

    pub(crate) fn leg(&self) -> Option<Leg> {
        match self {
            Source::One(sample) => sample.flight.leg(),
            Source::Many(_) => Some(Leg::Decode),
        }
    }

    /// The answer is whole: nothing is to be aborted.
    pub(crate) fn land(self) {
        match self {
            Source::One(sample) => sample.flight.land(),
            Source::Many(many) => {
                for sample in many.samples {
                    sample.flight.land();
                }
            }
        }
    }
}

/// n samples of one prompt, as one stream.
pub(crate) struct Many {
    /// `None` once it has finished.
    merge: Option<merge::StreamMerger>,
    samples: Vec<Sample>,
    /// Which samples still speak, in the order of their turns.
    speaking: VecDeque<usize>,
}

impl Many {
    pub(crate) fn new(endpoint: Endpoint, samples: Vec<Sample>) -> Many {
        let count = u32::try_from(samples.len()).unwrap_or(u32::MAX);
        let speaking = (0..samples.len()).collect();
        Many { merge: Some(merge::StreamMerger::new(endpoint, count)), samples, speaking }
    }

    fn worker(&self) -> &Arc<Worker> {
        // All samples are on one pair, and there are at least two of them.
        self.samples[0].flight.worker()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Kind>>> {
        let Some(merge) = &mut self.merge else { return Poll::Ready(None) };
        let mut waiting = 0;
        while waiting < self.speaking.len() {
            // Each in turn, so that one fast sample does not hold up the others.
            let Some(k) = self.speaking.pop_front() else { break };
            let event = match self.samples[k].poll_event(cx) {
                Poll::Ready(None) => continue,
                Poll::Ready(Some(event)) => Some(event),
                Poll::Pending => None,
            };
            self.speaking.push_back(k);
            match event {
                None => waiting += 1,
                Some(Err(kind)) => return Poll::Ready(Some(Err(kind))),
                Some(Ok(event)) => {
                    waiting = 0;
                    match merge.push(k, &event) {
                        Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                        Ok(None) => {}
                        Err(told) => return Poll::Ready(Some(Err(told_late(told)))),
                    }
                }
            }
        }
        if !self.speaking.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(self.merge.take().map(|merge| Ok(merge.finish())))
    }
}
