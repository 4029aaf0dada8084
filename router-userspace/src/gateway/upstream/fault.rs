//! [`Fault`]: what went wrong at one leg's worker, and what follows for retry and blame.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use router_core::fleet::Worker;
use router_core::pair::Leg;
use router_core::sglang::Endpoint;
use router_core::sglang::fault::ClientError;

/// One leg's failure.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// `None` where one worker serves alone.
    pub leg: Option<Leg>,
    pub worker: Arc<Worker>,
    pub kind: Kind,
}

/// How a leg failed.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// No connection could be made.
    Unreachable(String),
    /// The connection ended before the answer was whole.
    Broken(String),
    /// The engine lived until it had this request; another pair is not risked.
    Died,
    /// No probe is answered any more while the request waits.
    Silent,
    /// The answer did not come within this limit.
    Late { waited_for: &'static str, limit: Duration },
    /// The engine answered with an error, as a status or as an event of a stream.
    Engine { status: StatusCode, error: Box<ClientError>, about_transfer: bool },
    /// The engine's version drops the room that this endpoint was sent with.
    Unserved(Endpoint),
    /// The answer is not what this endpoint answers.
    Malformed(String),
}

/// Every [`Fault::reason`]: prefill's, decode's, and that of an engine that serves alone.
pub(crate) const REASONS: [[&str; 3]; 10] = [
    ["prefill_unreachable", "decode_unreachable", "engine_unreachable"],
    ["prefill_broken", "decode_broken", "engine_broken"],
    ["prefill_silent", "decode_silent", "engine_silent"],
    ["prefill_timeout", "decode_timeout", "engine_timeout"],
    ["prefill_refused", "decode_refused", "engine_refused"],
    ["prefill_kv_transfer", "decode_kv_transfer", "engine_kv_transfer"],
    ["prefill_error", "decode_error", "engine_error"],
    ["prefill_unserved", "decode_unserved", "engine_unserved"],
    ["prefill_malformed", "decode_malformed", "engine_malformed"],
    ["prefill_died", "decode_died", "engine_died"],
];

impl Fault {
    /// Whether another pair may be tried while the client has seen nothing.
    pub(crate) fn retryable(&self) -> bool {
        match &self.kind {
            Kind::Unreachable(_) | Kind::Broken(_) | Kind::Silent => true,
            Kind::Engine { status, about_transfer, .. } => {
                matches!(*status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)
                    || (status.is_server_error() && *about_transfer)
            }
            Kind::Died | Kind::Late { .. } | Kind::Unserved(_) | Kind::Malformed(_) => false,
        }
    }

    /// Tells the worker's health what this failure says of it. A transfer error says nothing:
    /// a dead prefill shows as decode's 500, and a dead decode as prefill's.
    pub(crate) fn charge(&self, now_ms: u64) {
        match &self.kind {
            Kind::Unreachable(_) => self.worker.health.unreachable(),
            // A full engine is busy and not ill.
            Kind::Engine { status: StatusCode::SERVICE_UNAVAILABLE, .. } => {}
            Kind::Engine { status, about_transfer, .. } if status.is_server_error() => {
                if !about_transfer {
                    self.worker.health.errored(now_ms);
                }
            }
            Kind::Malformed(_) => self.worker.health.errored(now_ms),
            Kind::Engine { .. } | Kind::Unserved(_) => self.worker.health.answered(),
            // Whether a broken or late worker is gone is for a probe to say.
            Kind::Broken(_) | Kind::Died | Kind::Silent | Kind::Late { .. } => {}
        }
    }

    /// Whether a probe should look at once instead of at its next turn.
    pub(crate) fn wants_probe(&self) -> bool {
        match &self.kind {
            Kind::Engine { status, .. } => status.is_server_error(),
            _ => true,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match &self.kind {
            Kind::Unreachable(_)
            | Kind::Broken(_)
            | Kind::Died
            | Kind::Silent
            | Kind::Malformed(_) => StatusCode::BAD_GATEWAY,
            Kind::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
            Kind::Unserved(_) => StatusCode::NOT_IMPLEMENTED,
            Kind::Engine { status, .. } => *status,
        }
    }

    /// It speaks of bootstrap or KV transfer, so that either leg may be the cause.
    pub(crate) fn about_transfer(&self) -> bool {
        matches!(&self.kind, Kind::Engine { about_transfer: true, .. })
    }

    /// The connection broke after the request was sent.
    pub(crate) fn broke(&self) -> bool {
        matches!(&self.kind, Kind::Broken(_))
    }

    /// Nothing of the request is left at the engine: it never came, or was answered.
    pub(crate) fn engine_is_done(&self) -> bool {
        matches!(&self.kind, Kind::Unreachable(_) | Kind::Engine { .. } | Kind::Unserved(_))
    }

    /// The engine refused the request itself: nobody's fault but the request's.
    pub(crate) fn is_clients(&self) -> bool {
        matches!(&self.kind, Kind::Engine { status, .. } if status.is_client_error())
    }

    /// For the client: which leg, and why, and no address.
    pub(crate) fn message(&self) -> String {
        let who = self.leg.map_or("engine", Leg::as_str);
        match &self.kind {
            Kind::Unreachable(_) => format!("the {who} engine cannot be reached"),
            Kind::Broken(_) => {
                format!("the {who} engine closed the connection before its answer was whole")
            }
            Kind::Died => {
                format!("the {who} engine died while it had this request; no other is tried")
            }
            Kind::Silent => format!("the {who} engine has stopped answering"),
            Kind::Late { waited_for, limit } => {
                format!("the {who} engine did not send {waited_for} within {limit:?}")
            }
            Kind::Engine { error, .. } if self.is_clients() => error.message.clone(),
            Kind::Engine { status, error, .. } => {
                format!("the {who} engine answered {}: {}", status.as_u16(), error.message)
            }
            Kind::Unserved(endpoint) => {
                format!("the {who} engine's version does not serve {endpoint} as one of a pair")
            }
            Kind::Malformed(why) => format!("the {who} engine's answer is not understood: {why}"),
        }
    }

    /// For logs: the operating system's word too.
    pub(crate) fn detail(&self) -> String {
        match &self.kind {
            Kind::Unreachable(why) | Kind::Broken(why) => format!("{}: {why}", self.message()),
            _ => self.message(),
        }
    }

    /// A short name for metrics: `prefill_unreachable`, `decode_error`, ...
    pub(crate) fn reason(&self) -> &'static str {
        let names = REASONS[match &self.kind {
            Kind::Unreachable(_) => 0,
            Kind::Broken(_) => 1,
            Kind::Silent => 2,
            Kind::Late { .. } => 3,
            Kind::Engine { status, .. } if status.is_client_error() => 4,
            Kind::Engine { about_transfer: true, .. } => 5,
            Kind::Engine { .. } => 6,
            Kind::Unserved(_) => 7,
            Kind::Malformed(_) => 8,
            Kind::Died => 9,
        }];
        match self.leg {
            Some(Leg::Prefill) => names[0],
            Some(Leg::Decode) => names[1],
            None => names[2],
        }
    }
}
