//! What one leg's engine said, read into a [`Kind`] of fault.

use http::{Response, StatusCode};
use hyper::body::Incoming;
use router_core::sglang::{Endpoint, fault as engine};
use tokio::time::Instant;

use super::fault::Kind;
use crate::http_client::SendError;
use crate::http_client::read_body;

/// Longest error answer that is read.
const MAX_ERROR: usize = 64 << 10;

impl From<SendError> for Kind {
    fn from(error: SendError) -> Kind {
        match error {
            SendError::Unreachable(why) | SendError::Unanswered(why) => Kind::Unreachable(why),
            SendError::Broken(why) => Kind::Broken(why),
            // What goes to an engine's leg is whole and was measured.
            SendError::BodyTooLarge => Kind::Broken(error.to_string()),
        }
    }
}

/// An answer to a request of `endpoint` that is not a success.
pub(crate) async fn refusal(endpoint: Endpoint, response: Response<Incoming>) -> Kind {
    let status = response.status();
    let body = read_body(response.into_body(), MAX_ERROR).await.unwrap_or_default();
    // An engine has no business redirecting, or switching protocols.
    if !status.is_client_error() && !status.is_server_error() {
        return Kind::Malformed(format!("status {}", status.as_u16()));
    }
    let error = engine::engine_error(status.as_u16(), &body);
    if engine::lacks_room(&error.message) {
        return Kind::Unserved(endpoint);
    }
    // Engines whose `/v1/messages` drops the room say 500 without a reason: no leg is to blame.
    let about_transfer = engine::about_transfer(&error.message) || endpoint == Endpoint::Messages;
    Kind::Engine { status, error: Box::new(error), about_transfer }
}

/// An error that came under a head that said 200.
pub(crate) fn told_late(fault: engine::EngineFault) -> Kind {
    let status = StatusCode::from_u16(fault.status)
        .ok()
        .filter(|status| status.is_client_error() || status.is_server_error());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let about_transfer = engine::about_transfer(&fault.message);
    let error = Box::new(engine::ClientError::new(status.as_u16(), fault.message));
    Kind::Engine { status, error, about_transfer }
}

/// Resolves at the deadline, or never without one.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
