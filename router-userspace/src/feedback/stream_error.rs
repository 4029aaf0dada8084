//! [`StreamError`]: why an agent's stream ended.

use std::time::Duration;

use http::StatusCode;
use router_core::frame::FrameError;

use super::agent_state::SequenceError;
use super::budget::RateExceeded;

/// Time an agent may take to answer, and the longest silence of a stream: ten heartbeats.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("cannot connect to the agent: {0}")]
    Unreachable(String),
    #[error("the agent answered {0}; expected 200")]
    Refused(StatusCode),
    #[error("the agent sent no frame for {STREAM_TIMEOUT:?}")]
    Timeout,
    #[error("the connection failed: {0}")]
    Broken(String),
    #[error("the agent closed the stream")]
    Closed,
    #[error("malformed frame: {0}")]
    Malformed(#[from] FrameError),
    #[error("{0}")]
    Sequence(#[from] SequenceError),
    #[error("{0}")]
    RateExceeded(#[from] RateExceeded),
    #[error("the token file {0} cannot be read or is empty")]
    NoToken(String),
}

impl StreamError {
    /// The `reason` label of `pd_router_feedback_errors`.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            StreamError::Unreachable(_) => "unreachable",
            StreamError::Refused(_) | StreamError::NoToken(_) => "refused",
            StreamError::Timeout => "timeout",
            StreamError::Broken(_) | StreamError::Closed => "ended",
            StreamError::Malformed(_) => "bad_frame",
            StreamError::Sequence(_) => "sequence",
            StreamError::RateExceeded(_) => "rate_limit",
        }
    }
}
