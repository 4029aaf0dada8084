//! [`Source`]: where a streamed answer's events come from: one engine, or n samples made one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use router_core::fleet::Worker;
use router_core::pair::Leg;
use router_core::sglang::logprob::InputLogprobs;
use router_core::sglang::{Request, merge, sse};

use super::fault::Kind;
use super::flight::Flight;
use super::leg::event_fault;
use super::opening::Events;

/// One sample's events, with what keeps it alive at the engines.
pub(crate) struct Sample {
    /// The event that was held.
    pub first: Option<Bytes>,
    pub events: Events,
    /// Prefill's part of the prompt's logprobs, where the client wants them.
    pub logprobs: Option<InputLogprobs>,
    pub flight: Flight,
}

impl Sample {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Kind>>> {
        let event = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => std::task::ready!(self.events.poll_next(cx)),
        };
        Poll::Ready(match (event, &mut self.logprobs) {
            (Some(Ok(event)), Some(logprobs)) => Some(Ok(logprobs.merge_event(event))),
            (event, _) => event,
        })
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
    request: Request,
    merge: merge::Stream,
    samples: Vec<Sample>,
    /// Which samples still speak, in the order of their turns.
    speaking: VecDeque<usize>,
    finished: bool,
}

impl Many {
    pub(crate) fn new(request: Request, samples: Vec<Sample>) -> Many {
        let merge = merge::Stream::new(&request);
        let speaking = (0..samples.len()).collect();
        Many { request, merge, samples, speaking, finished: false }
    }

    fn worker(&self) -> &Arc<Worker> {
        // All samples are on one pair, and there are at least two of them.
        self.samples[0].flight.worker()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Kind>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let mut waiting = 0;
        while waiting < self.speaking.len() {
            // Each in turn, so that one fast sample does not hold up the others.
            let Some(k) = self.speaking.pop_front() else { break };
            match self.samples[k].poll_event(cx) {
                Poll::Pending => {
                    self.speaking.push_back(k);
                    waiting += 1;
                }
                Poll::Ready(None) => waiting = 0,
                Poll::Ready(Some(Err(kind))) => return Poll::Ready(Some(Err(kind))),
                Poll::Ready(Some(Ok(event))) => {
                    self.speaking.push_back(k);
                    waiting = 0;
                    if let Some(fault) = sse::first_event_fault(self.request.endpoint(), &event) {
                        return Poll::Ready(Some(Err(event_fault(fault))));
                    }
                    if let Some(event) = self.merge.push(k, &event) {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
            }
        }
        if !self.speaking.is_empty() {
            return Poll::Pending;
        }
        self.finished = true;
        Poll::Ready(Some(Ok(self.merge.finish())))
    }
}
