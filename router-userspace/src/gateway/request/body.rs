//! [`Answer`]: the body of every answer of the gateway; and the reading of requests' bodies.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::reject::Reject;

/// What a body fails with: the connection to the client is then cut.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is relayed as it comes.
pub(crate) type Relayed = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>;

/// The body of an answer.
pub(crate) enum Answer {
    /// Bytes at hand.
    Whole(Option<Bytes>),
    Relayed(Relayed),
}

impl Answer {
    pub(crate) fn whole(bytes: Bytes) -> Answer {
        Answer::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub(crate) fn relayed(
        body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static,
    ) -> Answer {
        Answer::Relayed(Box::pin(body))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Answer::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Relayed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Whole(bytes) => bytes.is_none(),
            Answer::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Answer::Relayed(body) => body.size_hint(),
        }
    }
}

/// Reads a request's body whole.
///
/// # Errors
/// An encoded body, one over `limit` bytes, a client that stops sending, and no room in `memory`,
/// whose permits are bytes and are held as long as the body.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limit: usize,
    patience: Duration,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Reject> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|value| *value != "identity") {
        return Err(Reject::EncodedBody(String::from_utf8_lossy(encoding.as_bytes()).into_owned()));
    }
    let told: Option<usize> =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if told.is_some_and(|told| told > limit) {
        return Err(Reject::BodyTooLarge(limit));
    }
    collect(body, told, limit, patience, memory).await
}

async fn collect(
    mut body: Incoming,
    told: Option<usize>,
    limit: usize,
    patience: Duration,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Reject> {
    let mut held = room(memory, 0)?;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) =
        timeout(patience, body.frame()).await.map_err(|_| Reject::BodyLate(patience))?
    {
        let frame = frame.map_err(|error| Reject::BodyBroken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err(Reject::BodyTooLarge(limit));
        }
        held.merge(room(memory, data.len())?);
        if first.is_empty() && all.is_empty() {
            // A small body comes in one piece and is not copied.
            first = data;
            continue;
        }
        if all.is_empty() {
            // What the client promised, but no more at once than a piece of what came: memory
            // is not reserved on a promise alone.
            all.reserve(told.unwrap_or(0).min(1 << 20).max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok((if all.is_empty() { first } else { all.freeze() }, held))
}

fn room(memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Reject> {
    let bytes = u32::try_from(bytes).map_err(|_| Reject::NoMemory)?;
    Arc::clone(memory).try_acquire_many_owned(bytes).map_err(|_| Reject::NoMemory)
}
