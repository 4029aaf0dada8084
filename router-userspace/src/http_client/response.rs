//! [`read_body`]: reads the whole body of a response, within its limits of size, time and memory.

use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::collector::{BodyMemory, Collector, OverLimit};
use super::innermost;
use super::received_body::ReceivedBody;

/// Limits on one body that is read whole.
#[derive(Clone, Debug)]
pub(crate) struct ReadLimits {
    /// Maximum size in bytes.
    pub size: usize,
    /// Maximum time between two pieces; `None` if the caller limits the time of the whole body.
    pub idle: Option<Duration>,
    /// The memory that the body is charged to; `None` for the gateway's own small requests.
    pub memory: Option<BodyMemory>,
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

impl From<OverLimit> for ReadError {
    fn from(over: OverLimit) -> ReadError {
        match over {
            OverLimit::TooLarge(limit) => ReadError::TooLarge(limit),
            OverLimit::NoMemory => ReadError::NoMemory,
        }
    }
}

/// Reads the whole body of a response. Its bytes are charged as they arrive.
///
/// # Errors
/// The connection broke, or the body exceeds one of its limits.
pub(crate) async fn read_body(
    mut body: ReceivedBody,
    limits: &ReadLimits,
) -> Result<Bytes, ReadError> {
    let announced = body.size_hint().exact();
    let mut collector = Collector::new(limits.size, announced, limits.memory.clone());
    while let Some(frame) = next_frame(&mut body, limits.idle).await? {
        let frame = frame.map_err(|error| ReadError::Broken(innermost(&error)))?;
        if let Ok(data) = frame.into_data() {
            collector.push(data)?;
        }
    }
    Ok(collector.finish())
}

type NextFrame = Option<Result<http_body::Frame<Bytes>, hyper::Error>>;

async fn next_frame(
    body: &mut ReceivedBody,
    idle: Option<Duration>,
) -> Result<NextFrame, ReadError> {
    match idle {
        Some(limit) => timeout(limit, body.frame()).await.map_err(|_| ReadError::Late(limit)),
        None => Ok(body.frame().await),
    }
}
