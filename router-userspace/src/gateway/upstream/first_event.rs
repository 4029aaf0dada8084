//! The start of an engine's response: a stream is read up to its first meaningful event, any other
//! response to its end.
//!
//! The head of a stream is a 200 before the engine has done anything. An error as its first event is
//! a failure that may still be retried, so nothing is promised to the client before.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, Response};
use http_body::Body;
use router_core::sglang::sse::{self, MAX_EVENT, Splitter};
use router_core::sglang::{Endpoint, Request, fault, response};

use super::fault::FaultKind;
use super::leg::error_after_head;
use crate::http_client::innermost;
use crate::http_client::received_body::ReceivedBody;
use crate::http_client::response::{ReadLimits, read_body};

/// Maximum number of preamble events that are read before the stream is passed on; no endpoint
/// sends more.
const MAX_PREAMBLE: usize = 8;

/// A response that may be passed to the client.
pub(crate) enum ResponseStart {
    /// Server-sent events, read up to the first meaningful one.
    Stream {
        head: Parts,
        first: VecDeque<Bytes>,
        events: EventStream,
    },
    Whole {
        head: Parts,
        body: Bytes,
    },
}

impl ResponseStart {
    pub(crate) fn head(&self) -> &Parts {
        match self {
            ResponseStart::Stream { head, .. } | ResponseStart::Whole { head, .. } => head,
        }
    }

    /// The id of a response of `/v1/responses`.
    pub(crate) fn response_id(&self) -> Option<String> {
        match self {
            ResponseStart::Whole { body, .. } => response::id(body),
            ResponseStart::Stream { first, .. } => first.iter().find_map(|e| response::event_id(e)),
        }
    }
}

/// Reads a response until it may be passed to the client.
///
/// # Errors
/// The response is an error, is malformed, or ended early.
pub(crate) async fn read_start(
    response: Response<ReceivedBody>,
    request: &Request,
    limits: &ReadLimits,
) -> Result<ResponseStart, FaultKind> {
    let (head, body) = response.into_parts();
    if !request.stream() || !is_event_stream(&head.headers) {
        let body = read_body(body, limits).await?;
        return match fault::answer_fault(request.endpoint(), &body) {
            Some(error) => Err(error_after_head(error)),
            None => Ok(ResponseStart::Whole { head, body }),
        };
    }
    let mut events = EventStream { body, splitter: Splitter::new(MAX_EVENT), ended: false };
    let first = first_meaningful_event(request.endpoint(), &mut events).await?;
    Ok(ResponseStart::Stream { head, first, events })
}

/// Reads the events up to the first that is neither a preamble nor an error. Comments before it are left
/// out: they would come late, and another attempt may answer.
async fn first_meaningful_event(
    endpoint: Endpoint,
    events: &mut EventStream,
) -> Result<VecDeque<Bytes>, FaultKind> {
    let mut first = VecDeque::new();
    loop {
        let event = std::future::poll_fn(|cx| events.poll_next(cx)).await.transpose()?;
        let Some(event) = event else {
            return Err(FaultKind::Broken(
                "the stream ended before its first meaningful event".to_owned(),
            ));
        };
        if sse::is_comment(&event) {
            continue;
        }
        if let Some(error) = fault::first_event_fault(endpoint, &event) {
            return Err(error_after_head(error));
        }
        let is_meaningful = !sse::is_preamble(endpoint, &event);
        first.push_back(event);
        if is_meaningful || first.len() == MAX_PREAMBLE {
            return Ok(first);
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    const EVENTS: &[u8] = b"text/event-stream";
    kind.len() >= EVENTS.len() && kind[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
}

/// The events of an engine's stream.
pub(crate) struct EventStream {
    body: ReceivedBody,
    splitter: Splitter,
    ended: bool,
}

impl EventStream {
    /// The next whole event. `None` at a clean end; an end in the middle of an event is a fault.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, FaultKind>>> {
        loop {
            match self.splitter.next() {
                Some(Ok(event)) => return Poll::Ready(Some(Ok(event))),
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(FaultKind::Malformed(error.to_string()))));
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
                    return Poll::Ready(Some(Err(FaultKind::Broken(innermost(&error)))));
                }
                None => {
                    self.ended = true;
                    let rest = std::mem::replace(&mut self.splitter, Splitter::new(0)).rest();
                    if !rest.trim_ascii().is_empty() {
                        let why = "the stream ended inside an event".to_owned();
                        return Poll::Ready(Some(Err(FaultKind::Broken(why))));
                    }
                }
            }
        }
    }
}
