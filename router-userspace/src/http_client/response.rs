//! [`read_body`]: reads the whole body of a response, within its limits of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::innermost;

/// Limits on one body that is read whole.
#[derive(Clone, Debug)]
pub(crate) struct ReadLimits {
    /// Maximum size in bytes.
    pub size: usize,
    /// Maximum time between two pieces; `None` if the caller limits the time of the whole body.
    pub idle: Option<Duration>,
    /// The memory that the body is charged to; `None` for the gateway's own small requests.
    pub memory: Option<ResponseMemory>,
}

impl ReadLimits {
    /// Limits the size alone.
    pub(crate) fn size(size: usize) -> ReadLimits {
        ReadLimits { size, idle: None, memory: None }
    }
}

/// Why a body was not read to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Broken(String),
    #[error("the response is over {0} bytes")]
    TooLarge(usize),
    #[error("no part of the response came within {0:?}")]
    Late(Duration),
    #[error("the responses of all requests together are too large")]
    NoMemory,
}

/// The bytes that all responses which are read whole may hold in memory together.
#[derive(Clone, Debug)]
pub(crate) struct ResponseMemory(Arc<Semaphore>);

impl ResponseMemory {
    pub(crate) fn new(bytes: usize) -> ResponseMemory {
        ResponseMemory(Arc::new(Semaphore::new(bytes)))
    }

    /// Charges a body that was made of others, until its last part is dropped.
    ///
    /// # Errors
    /// [`ReadError::NoMemory`]
    pub(crate) fn charge(&self, body: Bytes) -> Result<Bytes, ReadError> {
        let permits = self.reserve(body.len())?;
        Ok(charged(body, permits))
    }

    fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ReadError> {
        let bytes = u32::try_from(bytes).map_err(|_| ReadError::NoMemory)?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| ReadError::NoMemory)
    }
}

/// Bytes whose permits are released with their last part.
struct ChargedBytes {
    bytes: Bytes,
    _permits: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn charged(bytes: Bytes, permits: OwnedSemaphorePermit) -> Bytes {
    Bytes::from_owner(ChargedBytes { bytes, _permits: permits })
}

/// Reads the whole body of a response. Its bytes are charged as they arrive.
///
/// # Errors
/// The connection broke, or the body exceeds one of its limits.
pub(crate) async fn read_body(mut body: Incoming, limits: &ReadLimits) -> Result<Bytes, ReadError> {
    let mut permits: Option<OwnedSemaphorePermit> = None;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = next_frame(&mut body, limits.idle).await? {
        let frame = frame.map_err(|error| ReadError::Broken(innermost(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limits.size {
            return Err(ReadError::TooLarge(limits.size));
        }
        if let Some(memory) = &limits.memory {
            let more = memory.reserve(data.len())?;
            match &mut permits {
                Some(permits) => permits.merge(more),
                None => permits = Some(more),
            }
        }
        if first.is_empty() && all.is_empty() {
            // A small body comes in one piece and is not copied.
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    let body = if all.is_empty() { first } else { all.freeze() };
    Ok(match permits {
        Some(permits) => charged(body, permits),
        None => body,
    })
}

type NextFrame = Option<Result<http_body::Frame<Bytes>, hyper::Error>>;

async fn next_frame(body: &mut Incoming, idle: Option<Duration>) -> Result<NextFrame, ReadError> {
    match idle {
        Some(limit) => timeout(limit, body.frame()).await.map_err(|_| ReadError::Late(limit)),
        None => Ok(body.frame().await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_with_the_last_part_of_a_body() {
        let memory = ResponseMemory::new(10);
        let body = memory.charge(Bytes::from_static(b"0123456789")).expect("it fits");
        let part = body.slice(2..4);
        drop(body);
        assert_eq!(memory.charge(Bytes::from_static(b"x")), Err(ReadError::NoMemory));
        assert_eq!(part, "23");
        drop(part);
        memory.charge(Bytes::from_static(b"0123456789")).expect("all of it is free again");
    }
}
