//! Reads the whole body of a request, within its limits of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::reject::Reject;

/// Reads the whole body of a request. The permits are the body's bytes in `memory`, to be kept as long
/// as the body.
///
/// # Errors
/// The body is encoded, is over `limit` bytes, or exceeds the permits of `memory`; the client sends
/// nothing for `idle_timeout`, or closes the connection.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limit: usize,
    idle_timeout: Duration,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Reject> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|value| *value != "identity") {
        return Err(Reject::EncodedBody(String::from_utf8_lossy(encoding.as_bytes()).into_owned()));
    }
    let announced =
        body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > limit) {
        return Err(Reject::BodyTooLarge(limit));
    }
    collect(body, announced, limit, idle_timeout, memory).await
}

async fn collect(
    mut body: Incoming,
    announced: Option<usize>,
    limit: usize,
    idle_timeout: Duration,
    memory: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Reject> {
    let mut permits = reserve(memory, 0)?;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) =
        timeout(idle_timeout, body.frame()).await.map_err(|_| Reject::BodyTimeout(idle_timeout))?
    {
        let frame = frame.map_err(|error| Reject::BodyBroken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err(Reject::BodyTooLarge(limit));
        }
        permits.merge(reserve(memory, data.len())?);
        if first.is_empty() && all.is_empty() {
            // A small body comes in one piece and is not copied.
            first = data;
            continue;
        }
        if all.is_empty() {
            // The announced length, but not more than 1 MiB at once: memory is not allocated for an
            // announcement alone.
            all.reserve(announced.unwrap_or(0).min(1 << 20).max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok((if all.is_empty() { first } else { all.freeze() }, permits))
}

fn reserve(memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Reject> {
    let bytes = u32::try_from(bytes).map_err(|_| Reject::NoMemory)?;
    Arc::clone(memory).try_acquire_many_owned(bytes).map_err(|_| Reject::NoMemory)
}
