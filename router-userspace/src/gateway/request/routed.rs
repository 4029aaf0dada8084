//! [`RoutedRequest`]: a request whose route is known, and the [`Reply`] of its target.

use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Response};
use tokio::time::Instant;

use super::early_stream::WaitingGeneration;
use super::proxied_body::ProxiedBody;
use super::relay::RelayedEvents;
use super::response_body::ResponseBody;
use super::upgrade::{AgreedUpgrade, UpgradeRequest};
use crate::http_client::client_body::ClientBody;

/// The answer of a target, without the gateway's own headers.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each stream")]
pub(crate) enum Reply {
    Whole(Response<ResponseBody>),
    /// A backend's answer, passed on as it comes.
    Proxied(Box<Response<ProxiedBody>>),
    /// A backend has agreed to an upgrade. The response has no body.
    Upgraded(Box<(HeaderMap, AgreedUpgrade)>),
    /// A stream of events of an engine.
    Events {
        head: HeaderMap,
        events: RelayedEvents,
    },
    /// A stream whose head is sent although no engine has answered yet.
    Early(WaitingGeneration),
}

/// A request on its way to its target.
pub(crate) struct RoutedRequest {
    pub parts: Parts,
    pub body: ClientBody,
    /// End-to-end headers, with the route's changes and without engine control.
    pub headers: HeaderMap,
    /// The path for the target.
    pub path: PathAndQuery,
    pub deadlines: RouteDeadlines,
    pub upgrade: Option<UpgradeRequest>,
}

/// The time limits of the route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteDeadlines {
    /// When the whole request must have ended.
    pub request: Option<Instant>,
    /// Maximum duration of one attempt.
    pub attempt: Option<Duration>,
}

impl RouteDeadlines {
    /// When an attempt that begins now must have ended.
    pub(crate) fn attempt_deadline(&self) -> Option<Instant> {
        let attempt = self.attempt.map(|limit| Instant::now() + limit);
        [self.request, attempt].into_iter().flatten().min()
    }
}
