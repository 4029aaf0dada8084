//! [`Ended`]: why a stream of an agent ended.

use http::StatusCode;
use router_core::frame::Bad;

use super::budget::Flood;
use super::ear::Lost;
use super::subscribe::PATIENCE;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("it answers {0}")]
    Refused(StatusCode),
    #[error("it said nothing for {PATIENCE:?}")]
    Silent,
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error("the stream ended")]
    Over,
    #[error("no frame: {0}")]
    Bad(#[from] Bad),
    #[error("{0}")]
    Lost(#[from] Lost),
    #[error("{0}")]
    Flood(#[from] Flood),
    #[error("{0} holds no token")]
    NoToken(String),
}

impl Ended {
    /// As metrics name it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Ended::Unreachable(_) => "unreachable",
            Ended::Refused(_) | Ended::NoToken(_) => "refused",
            Ended::Silent => "silent",
            Ended::Broken(_) | Ended::Over => "ended",
            Ended::Bad(_) => "bad_frame",
            Ended::Lost(_) => "gap",
            Ended::Flood(_) => "flood",
        }
    }
}
