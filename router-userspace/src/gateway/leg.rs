//! What one leg's engine said, read into a [`Kind`] of fault.

use http::{Response, StatusCode};
use hyper::body::Incoming;
use router_core::sglang::{Endpoint, fault as engine};
use tokio::time::Instant;

use super::body::read_answer;
use super::fault::{EngineError, Kind};
use super::upstream::NoAnswer;

/// Longest error answer that is read.
const MAX_ERROR: usize = 64 << 10;

impl From<NoAnswer> for Kind {
    fn from(error: NoAnswer) -> Kind {
        match error {
            NoAnswer::Unreachable(why) => Kind::Unreachable(why),
            NoAnswer::Broken(why) => Kind::Broken(why),
        }
    }
}

/// An answer that is not a success.
pub(crate) async fn refusal(endpoint: Endpoint, response: Response<Incoming>) -> Kind {
    let status = response.status();
    let body = read_answer(response.into_body(), MAX_ERROR).await.unwrap_or_default();
    let told = engine::engine_error(endpoint, status.as_u16(), &body);
    let error = EngineError {
        about_transfer: engine::about_transfer(&told.message),
        message: engine::strip_addresses(&told.message).into_owned(),
        kind: told.kind,
        param: told.param,
    };
    // An engine has no business redirecting, or switching protocols.
    if status.is_client_error() || status.is_server_error() {
        Kind::Engine { status, error }
    } else {
        Kind::Malformed(format!("status {}", status.as_u16()))
    }
}

/// An error that came as an event of a stream whose head said 200.
pub(crate) fn event_fault(fault: engine::EngineFault) -> Kind {
    let status = StatusCode::from_u16(fault.status)
        .ok()
        .filter(|status| status.is_client_error() || status.is_server_error());
    let error = EngineError {
        about_transfer: engine::about_transfer(&fault.message),
        message: engine::strip_addresses(&fault.message).into_owned(),
        kind: None,
        param: None,
    };
    Kind::Engine { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error }
}

/// Resolves at the deadline, or never without one.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
