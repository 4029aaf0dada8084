//! The opening of an engine's answer: a stream is held until its first whole event, anything
//! else until it is whole.
//!
//! A stream's head says 200 before anything has happened; an error event at its front is a
//! failure that may still be retried.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, Response};
use http_body::Body;
use hyper::body::Incoming;
use router_core::sglang::sse::{self, MAX_EVENT, Splitter};
use router_core::sglang::{Endpoint, Request, fault};

use super::fault::Kind;
use super::leg::told_late;
use crate::http_client::innermost;
use crate::http_client::read_body;

/// Events that say nothing yet and are held all the same; none of the endpoints opens with more.
const MAX_PREAMBLE: usize = 8;

/// An answer that has begun.
pub(crate) enum Opened {
    /// Server-sent events, read up to the first that says something.
    Stream {
        head: Parts,
        first: VecDeque<Bytes>,
        events: Events,
    },
    Whole {
        head: Parts,
        body: Bytes,
    },
}

impl Opened {
    pub(crate) fn head(&self) -> &Parts {
        match self {
            Opened::Stream { head, .. } | Opened::Whole { head, .. } => head,
        }
    }
}

/// Reads an answer until the client can be promised it.
pub(crate) async fn open(
    response: Response<Incoming>,
    request: &Request,
    max_answer: usize,
) -> Result<Opened, Kind> {
    let (head, body) = response.into_parts();
    if !request.stream() || !is_event_stream(&head.headers) {
        let body = read_body(body, max_answer).await.map_err(Kind::Broken)?;
        return match fault::answer_fault(request.endpoint(), &body) {
            Some(told) => Err(told_late(told)),
            None => Ok(Opened::Whole { head, body }),
        };
    }
    let mut events = Events { body, splitter: Splitter::new(MAX_EVENT), ended: false };
    let first = first_news(request.endpoint(), &mut events).await?;
    Ok(Opened::Stream { head, first, events })
}

/// The events up to the first that says something, which is no error.
async fn first_news(endpoint: Endpoint, events: &mut Events) -> Result<VecDeque<Bytes>, Kind> {
    let mut held = VecDeque::new();
    loop {
        let event = std::future::poll_fn(|cx| events.poll_next(cx)).await.transpose()?;
        let Some(event) = event else {
            return Err(Kind::Broken("the stream ended before it said anything".to_owned()));
        };
        if let Some(told) = fault::first_event_fault(endpoint, &event) {
            return Err(told_late(told));
        }
        let news = !sse::is_preamble(endpoint, &event);
        held.push_back(event);
        if news || held.len() == MAX_PREAMBLE {
            return Ok(held);
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    const EVENTS: &[u8] = b"text/event-stream";
    kind.len() >= EVENTS.len() && kind[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
}

/// The whole events of an engine's stream.
pub(crate) struct Events {
    body: Incoming,
    splitter: Splitter,
    ended: bool,
}

impl Events {
    /// The next whole event; `None` at a clean end. An end in the middle of an event is a break.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Kind>>> {
        loop {
            match self.splitter.next() {
                Some(Ok(event)) => return Poll::Ready(Some(Ok(event))),
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Kind::Malformed(error.to_string()))));
                }
                None => {}
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.splitter.push(data);
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Kind::Broken(innermost(&error)))));
                }
                None => {
                    self.ended = true;
                    let rest = std::mem::replace(&mut self.splitter, Splitter::new(0)).rest();
                    if !rest.trim_ascii().is_empty() {
                        let why = "the stream ended inside an event".to_owned();
                        return Poll::Ready(Some(Err(Kind::Broken(why))));
                    }
                }
            }
        }
    }
}
