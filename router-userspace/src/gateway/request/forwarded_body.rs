//! [`ForwardedBody`]: the body of a forwarded request, and what is kept of it for another attempt.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use tokio::time::Instant;

use super::reject::Reject;
use crate::http_client::client_body::{BodyHandle, ClientBody};
use crate::http_client::{OutgoingBody, whole};

/// Time for the HTTP client to drop the body of a request that has failed: its connection's task is about to.
const DROP_TIME: Duration = Duration::from_millis(100);

/// The body of a request to one endpoint.
pub(super) enum ForwardedBody {
    /// The request only reads.
    None,
    /// All bytes, which can be sent again.
    Whole(Bytes),
    /// The client's body, passed on as it comes.
    Passed(Box<ClientBody>),
}

impl ForwardedBody {
    /// The body as it is sent, and what is kept of it for another attempt. `max` is the maximum size of a
    /// client's body in bytes, `idle` the longest pause in it.
    pub(super) fn outgoing(self, (max, idle): (usize, Duration)) -> (OutgoingBody, KeptBody) {
        match self {
            ForwardedBody::None => (whole(Bytes::new()), KeptBody::None),
            ForwardedBody::Whole(bytes) => (whole(bytes.clone()), KeptBody::Whole(bytes)),
            ForwardedBody::Passed(body) => {
                let (body, handle) = body.limited(max, idle);
                (Either::Right(body), KeptBody::Passed(handle))
            }
        }
    }
}

/// The body of a request that is being sent, for the next attempt.
pub(super) enum KeptBody {
    None,
    Whole(Bytes),
    Passed(BodyHandle),
}

impl KeptBody {
    /// The endpoint has begun to answer. Returns the handle of a body that the client may still send.
    pub(super) fn answered(self) -> Option<BodyHandle> {
        match self {
            KeptBody::None | KeptBody::Whole(_) => None,
            KeptBody::Passed(handle) => {
                handle.answered();
                Some(handle)
            }
        }
    }

    /// Whether the endpoint has asked for a part that the client has not sent yet.
    pub(super) fn waits_for_client(&self) -> bool {
        matches!(self, KeptBody::Passed(handle) if handle.waits_for_client())
    }

    /// Until when the endpoint waited for the client: now if it still does, `None` if it never did.
    pub(super) fn waited_until(&self) -> Option<Instant> {
        match self {
            KeptBody::None | KeptBody::Whole(_) => None,
            KeptBody::Passed(handle) => handle.waited_until(),
        }
    }

    /// Waits until the HTTP client has dropped a body that is passed on: only then it can be sent again.
    pub(super) async fn dropped(&self) {
        if let KeptBody::Passed(handle) = self {
            handle.dropped(DROP_TIME).await;
        }
    }

    /// The body for the next attempt, if there is one.
    ///
    /// # Errors
    /// The client's body is why the attempt failed.
    pub(super) fn returned(self) -> Result<Option<ForwardedBody>, Reject> {
        match self {
            KeptBody::None => Ok(Some(ForwardedBody::None)),
            KeptBody::Whole(bytes) => Ok(Some(ForwardedBody::Whole(bytes))),
            KeptBody::Passed(handle) => match handle.error() {
                Some(error) => Err(error.into()),
                None => Ok(handle.returned().map(|body| ForwardedBody::Passed(Box::new(body)))),
            },
        }
    }
}
