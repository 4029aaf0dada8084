//! Reads what one leg's engine answered into a [`FaultKind`].

use std::time::Duration;

use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode};
use router_core::sglang::{Endpoint, fault as engine};
use tokio::time::Instant;

use super::fault::{FaultKind, Shortage};
use crate::http_client::SendError;
use crate::http_client::received_body::ReceivedBody;
use crate::http_client::response::{ReadError, ReadLimits, read_body};

/// Maximum size of an error answer that is read, in bytes.
const MAX_ERROR: usize = 64 << 10;

impl From<SendError> for FaultKind {
    fn from(error: SendError) -> FaultKind {
        match error {
            SendError::Unreachable(why) | SendError::ConnectTimeout(why) => {
                FaultKind::Unreachable(why)
            }
            SendError::NoResources(why) => FaultKind::Shortage(Shortage::Resources(why)),
            SendError::Broken(why) | SendError::Unread(why) => FaultKind::Broken(why),
        }
    }
}

impl From<ReadError> for FaultKind {
    fn from(error: ReadError) -> FaultKind {
        match error {
            ReadError::Broken(why) => FaultKind::Broken(why),
            ReadError::TooLarge(limit) => FaultKind::TooLarge(limit),
            ReadError::Late(limit) => {
                FaultKind::Timeout { waited_for: "the next part of its answer", limit }
            }
            ReadError::NoMemory => FaultKind::Shortage(Shortage::ResponseMemory),
        }
    }
}

/// The fault of an answer whose status is not a success. The body is read for its message, as long as
/// it keeps coming.
pub(crate) async fn refusal(
    endpoint: Endpoint,
    response: Response<ReceivedBody>,
    idle: Duration,
) -> FaultKind {
    let (head, body) = response.into_parts();
    let status = head.status;
    let limits = ReadLimits { idle: Some(idle), ..ReadLimits::size(MAX_ERROR) };
    let body = read_body(body, &limits).await.unwrap_or_default();
    // An engine neither redirects nor switches protocols.
    if !status.is_client_error() && !status.is_server_error() {
        return FaultKind::Malformed(format!("status {}", status.as_u16()));
    }
    let error = engine::engine_error(status.as_u16(), &body);
    if engine::lacks_room(&error.message) {
        return FaultKind::Unserved(endpoint);
    }
    // Engines whose `/v1/messages` ignores the bootstrap room answer 500 without a reason: neither leg
    // is at fault.
    let about_transfer = engine::about_transfer(&error.message) || endpoint == Endpoint::Messages;
    let headers = kept(&head.headers);
    FaultKind::Engine { status, error: Box::new(error), about_transfer, headers }
}

/// The fault of an error that one engine answered to a request that generates nothing.
pub(crate) fn plain_refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> FaultKind {
    if !status.is_client_error() && !status.is_server_error() {
        return FaultKind::Malformed(format!("status {}", status.as_u16()));
    }
    let error = Box::new(engine::engine_error(status.as_u16(), body));
    FaultKind::Engine { status, error, about_transfer: false, headers: kept(headers) }
}

/// The fields of an error answer that its client needs.
fn kept(headers: &HeaderMap) -> Option<Box<HeaderMap>> {
    let mut kept = HeaderMap::new();
    for name in [RETRY_AFTER, WWW_AUTHENTICATE] {
        for value in headers.get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    (!kept.is_empty()).then(|| Box::new(kept))
}

/// The fault of an error that came after a 200 status.
pub(crate) fn error_after_head(fault: engine::EngineFault) -> FaultKind {
    let status = StatusCode::from_u16(fault.status)
        .ok()
        .filter(|status| status.is_client_error() || status.is_server_error());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let about_transfer = engine::about_transfer(&fault.message);
    let error = Box::new(engine::ClientError::new(status.as_u16(), fault.message));
    FaultKind::Engine { status, error, about_transfer, headers: None }
}

/// Resolves at the deadline, or never without one.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
