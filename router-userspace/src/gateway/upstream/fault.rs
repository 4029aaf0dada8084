//! [`Fault`]: the failure of one leg, and what follows from it for retries and the worker's health.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use router_core::fleet::{HealthChange, Worker};
use router_core::pair::Leg;
use router_core::sglang::Endpoint;
use router_core::sglang::fault::{self as engine, ClientError};

/// One leg's failure.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// `None` if one worker serves alone.
    pub leg: Option<Leg>,
    pub worker: Arc<Worker>,
    pub kind: FaultKind,
}

/// How a leg failed.
#[derive(Clone, Debug)]
pub(crate) enum FaultKind {
    /// No connection could be made.
    Unreachable(String),
    /// The connection ended before the answer was whole.
    Broken(String),
    /// The engine died while it had this request, and no other pair is tried, so that one request
    /// cannot kill engine after engine.
    Died,
    /// The worker has stopped answering probes while the request waits.
    Silent,
    /// The answer did not come within this limit.
    Timeout { waited_for: &'static str, limit: Duration },
    /// The engine answered with an error, as a status or as an event of a stream.
    Engine {
        status: StatusCode,
        error: Box<ClientError>,
        about_transfer: bool,
        /// `Retry-After` and `WWW-Authenticate` of the answer, if it has any.
        headers: Option<Box<HeaderMap>>,
    },
    /// The engine's version ignores the bootstrap room at this endpoint.
    Unserved(Endpoint),
    /// The answer is not valid for this endpoint.
    Malformed(String),
    /// The answer is over this number of bytes.
    TooLarge(usize),
    /// The gateway itself lacks something: no engine is at fault.
    Shortage(Shortage),
}

/// What the gateway lacks for one more request.
#[derive(Clone, Debug)]
pub(crate) enum Shortage {
    /// File descriptors, local ports or memory for sockets: the operating system's error.
    Resources(String),
    /// The buffered responses of all requests have reached `--max-response-memory`.
    ResponseMemory,
}

impl Shortage {
    /// The name of the reason, which is no leg's.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Shortage::Resources(_) => GATEWAY_RESOURCES,
            Shortage::ResponseMemory => RESPONSE_MEMORY,
        }
    }
}

const GATEWAY_RESOURCES: &str = "gateway_resources";
const RESPONSE_MEMORY: &str = "response_memory";
/// The reasons that are no leg's.
pub(crate) const SHORTAGES: [&str; 2] = [GATEWAY_RESOURCES, RESPONSE_MEMORY];

/// The causes that metrics and headers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultReason {
    Unreachable,
    Broken,
    Silent,
    Timeout,
    Refused,
    KvTransfer,
    Error,
    Unserved,
    Malformed,
    TooLarge,
    Died,
}

impl FaultReason {
    pub(crate) const ALL: [FaultReason; 11] = [
        FaultReason::Unreachable,
        FaultReason::Broken,
        FaultReason::Silent,
        FaultReason::Timeout,
        FaultReason::Refused,
        FaultReason::KvTransfer,
        FaultReason::Error,
        FaultReason::Unserved,
        FaultReason::Malformed,
        FaultReason::TooLarge,
        FaultReason::Died,
    ];

    /// The name of the reason at a leg, or at an engine that serves alone: the metric's label.
    pub(crate) fn name(self, leg: Option<Leg>) -> &'static str {
        let (prefill, decode, engine) = match self {
            FaultReason::Unreachable => {
                ("prefill_unreachable", "decode_unreachable", "engine_unreachable")
            }
            FaultReason::Broken => ("prefill_broken", "decode_broken", "engine_broken"),
            FaultReason::Silent => ("prefill_silent", "decode_silent", "engine_silent"),
            FaultReason::Timeout => ("prefill_timeout", "decode_timeout", "engine_timeout"),
            FaultReason::Refused => ("prefill_refused", "decode_refused", "engine_refused"),
            FaultReason::KvTransfer => {
                ("prefill_kv_transfer", "decode_kv_transfer", "engine_kv_transfer")
            }
            FaultReason::Error => ("prefill_error", "decode_error", "engine_error"),
            FaultReason::Unserved => ("prefill_unserved", "decode_unserved", "engine_unserved"),
            FaultReason::Malformed => ("prefill_malformed", "decode_malformed", "engine_malformed"),
            FaultReason::TooLarge => (
                "prefill_response_too_large",
                "decode_response_too_large",
                "engine_response_too_large",
            ),
            FaultReason::Died => ("prefill_died", "decode_died", "engine_died"),
        };
        match leg {
            Some(Leg::Prefill) => prefill,
            Some(Leg::Decode) => decode,
            None => engine,
        }
    }
}

impl Fault {
    /// Whether the request may be retried on another pair, as long as the client has received
    /// nothing.
    pub(crate) fn retryable(&self) -> bool {
        match &self.kind {
            FaultKind::Unreachable(_) | FaultKind::Broken(_) | FaultKind::Silent => true,
            FaultKind::Engine { status, about_transfer, .. } => {
                matches!(*status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)
                    || (status.is_server_error() && *about_transfer)
            }
            FaultKind::Died
            | FaultKind::Timeout { .. }
            | FaultKind::Unserved(_)
            | FaultKind::Malformed(_)
            // The next answer to the same request would be too large as well.
            | FaultKind::TooLarge(_)
            // Another pair would meet the same shortage.
            | FaultKind::Shortage(_) => false,
        }
    }

    /// Updates the worker's health, and returns the change. A transfer error does not change it: a dead
    /// prefill shows as decode's 500, and a dead decode as prefill's.
    pub(crate) fn charge(&self, now_ms: u64) -> Option<HealthChange> {
        match &self.kind {
            FaultKind::Unreachable(_) => self.worker.health.unreachable(),
            // The engine is full, which is not a sign of bad health.
            FaultKind::Engine { status: StatusCode::SERVICE_UNAVAILABLE, .. } => {
                self.worker.health.refused(now_ms);
                None
            }
            FaultKind::Engine { status, about_transfer, .. } if status.is_server_error() => {
                if *about_transfer {
                    None
                } else {
                    self.worker.health.errored(now_ms)
                }
            }
            FaultKind::Malformed(_) => self.worker.health.errored(now_ms),
            FaultKind::Unserved(_) => self.worker.health.answered(),
            // The request may be at fault, or the worker: another worker is asked.
            FaultKind::Engine { .. } => None,
            // A probe finds out whether the worker is down.
            FaultKind::Broken(_)
            | FaultKind::Died
            | FaultKind::Silent
            | FaultKind::Timeout { .. } => None,
            // The engine has done its work.
            FaultKind::TooLarge(_) | FaultKind::Shortage(_) => None,
        }
    }

    /// Whether the worker has failed the request, by a server error, a timeout or a broken connection. One
    /// that refuses connections is down instead, one that is full is well, and an error about the transfer
    /// may be either leg's.
    pub(crate) fn is_failure(&self) -> bool {
        match &self.kind {
            FaultKind::Engine { status, about_transfer, .. } => {
                status.is_server_error() && !about_transfer && !self.is_full()
            }
            FaultKind::Broken(_)
            | FaultKind::Silent
            | FaultKind::Timeout { .. }
            | FaultKind::Malformed(_) => true,
            FaultKind::Unreachable(_)
            | FaultKind::Died
            | FaultKind::Unserved(_)
            | FaultKind::TooLarge(_)
            | FaultKind::Shortage(_) => false,
        }
    }

    /// Whether the engine answered with a client error other than 429.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(&self.kind, FaultKind::Engine { status, .. }
            if status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS)
    }

    /// Whether the engine answered with an error that another engine may not give: a client error, or a
    /// server error that is neither about capacity nor about the transfer.
    pub(crate) fn wants_second_opinion(&self) -> bool {
        let is_answer = matches!(&self.kind, FaultKind::Engine { .. });
        is_answer && (self.is_refusal() || self.is_failure())
    }

    /// Whether the worker should be probed at once instead of at the end of its interval. A full engine
    /// should not: it is well, and refuses many requests a second.
    pub(crate) fn wants_probe(&self) -> bool {
        match &self.kind {
            FaultKind::Engine { status, .. } => status.is_server_error() && !self.is_full(),
            FaultKind::TooLarge(_) | FaultKind::Shortage(_) => false,
            _ => true,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match &self.kind {
            FaultKind::Unreachable(_)
            | FaultKind::Broken(_)
            | FaultKind::Died
            | FaultKind::Silent
            | FaultKind::Malformed(_)
            | FaultKind::TooLarge(_) => StatusCode::BAD_GATEWAY,
            FaultKind::Shortage(_) => StatusCode::SERVICE_UNAVAILABLE,
            FaultKind::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            FaultKind::Unserved(_) => StatusCode::NOT_IMPLEMENTED,
            FaultKind::Engine { status, .. } => *status,
        }
    }

    /// Whether the error is about bootstrap or KV transfer, so that either leg may be the cause.
    pub(crate) fn about_transfer(&self) -> bool {
        matches!(&self.kind, FaultKind::Engine { about_transfer: true, .. })
    }

    /// Whether the KV transfer of the pair has failed, by the engine's words. Which leg is to blame shows in
    /// the transfers of others.
    pub(crate) fn is_failed_transfer(&self) -> bool {
        let FaultKind::Engine { error, status, .. } = &self.kind else { return false };
        status.is_server_error()
            && !self.is_full()
            && engine::about_transfer(&error.message)
            && !engine::is_requested_abort(&error.message)
    }

    /// Whether the engine refused the request because it has too many.
    pub(crate) fn is_full(&self) -> bool {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        matches!(&self.kind, FaultKind::Engine { status: answered, .. } if *answered == status)
    }

    /// Whether the client may succeed by sending the request again a moment later.
    pub(crate) fn passes(&self) -> bool {
        self.retryable() || matches!(&self.kind, FaultKind::Shortage(_))
    }

    /// Whether the answer, or its next part, did not come in time.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(&self.kind, FaultKind::Timeout { .. })
    }

    /// Whether the worker has stopped answering probes.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(&self.kind, FaultKind::Silent)
    }

    /// Whether the connection broke after the request was sent.
    pub(crate) fn broke(&self) -> bool {
        matches!(&self.kind, FaultKind::Broken(_))
    }

    /// Whether the engine has nothing left to abort: the request never came, or was answered.
    pub(crate) fn engine_is_done(&self) -> bool {
        matches!(
            &self.kind,
            FaultKind::Unreachable(_)
                | FaultKind::Engine { .. }
                | FaultKind::Unserved(_)
                | FaultKind::Shortage(Shortage::Resources(_))
        )
    }

    /// Whether the engine refused the request itself: the request is at fault, not the engine.
    pub(crate) fn is_clients(&self) -> bool {
        matches!(&self.kind, FaultKind::Engine { status, .. } if status.is_client_error())
    }

    /// The message for the client: the leg and the cause, without an engine's address.
    pub(crate) fn message(&self) -> String {
        let engine = match self.leg {
            Some(Leg::Prefill) => "prefill engine",
            Some(Leg::Decode) => "decode engine",
            None => "engine",
        };
        match &self.kind {
            FaultKind::Unreachable(_) => format!("the {engine} cannot be reached"),
            FaultKind::Broken(_) => {
                format!("the {engine} closed the connection before its answer was whole")
            }
            FaultKind::Died => {
                format!("the {engine} died while it had this request; no other is tried")
            }
            FaultKind::Silent => format!("the {engine} has stopped answering"),
            FaultKind::Timeout { waited_for, limit } => {
                format!("the {engine} did not send {waited_for} within {limit:?}")
            }
            FaultKind::Engine { error, .. } if self.is_clients() => error.message.clone(),
            FaultKind::Engine { status, error, .. } => {
                format!("the {engine} answered {}: {}", status.as_u16(), error.message)
            }
            FaultKind::Unserved(endpoint) if self.leg.is_some() => {
                format!("the {engine}'s version does not serve {endpoint} as one of a pair")
            }
            FaultKind::Unserved(_) => {
                "the engine runs as prefill or decode, and no InferenceTrafficPolicy with profile.pd \
                 names its pool"
                    .to_owned()
            }
            FaultKind::Malformed(why) => {
                format!("the {engine}'s answer is malformed: {why}")
            }
            FaultKind::TooLarge(limit) => {
                format!(
                    "the {engine}'s answer is over {limit} bytes, the limit of a whole response"
                )
            }
            FaultKind::Shortage(Shortage::Resources(_)) => {
                "the gateway is out of file descriptors, ports or socket memory".to_owned()
            }
            FaultKind::Shortage(Shortage::ResponseMemory) => {
                "too many large responses at once".to_owned()
            }
        }
    }

    /// The message for logs: with the operating system's error.
    pub(crate) fn detail(&self) -> String {
        match &self.kind {
            FaultKind::Unreachable(why)
            | FaultKind::Broken(why)
            | FaultKind::Shortage(Shortage::Resources(why)) => {
                format!("{}: {why}", self.message())
            }
            _ => self.message(),
        }
    }

    /// The name of the cause: `prefill_unreachable`, `decode_error`, ...
    pub(crate) fn reason(&self) -> &'static str {
        let reason = match &self.kind {
            FaultKind::Unreachable(_) => FaultReason::Unreachable,
            FaultKind::Broken(_) => FaultReason::Broken,
            FaultKind::Silent => FaultReason::Silent,
            FaultKind::Timeout { .. } => FaultReason::Timeout,
            FaultKind::Engine { status, .. } if status.is_client_error() => FaultReason::Refused,
            FaultKind::Engine { about_transfer: true, .. } => FaultReason::KvTransfer,
            FaultKind::Engine { .. } => FaultReason::Error,
            FaultKind::Unserved(_) => FaultReason::Unserved,
            FaultKind::Malformed(_) => FaultReason::Malformed,
            FaultKind::TooLarge(_) => FaultReason::TooLarge,
            FaultKind::Died => FaultReason::Died,
            FaultKind::Shortage(shortage) => return shortage.reason(),
        };
        reason.name(self.leg)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn worker() -> Arc<Worker> {
        let address = ([127, 0, 0, 1], 1).into();
        let key = router_core::fleet::WorkerKey { uid: "u".into(), address };
        Arc::new(Worker::new(key, "default/pod"))
    }

    #[test]
    fn a_full_engine_is_not_probed_at_once() {
        let wants_probe = |status: StatusCode| {
            let error = Box::new(ClientError::new(status.as_u16(), "no"));
            let kind = FaultKind::Engine { status, error, about_transfer: false, headers: None };
            Fault { leg: Some(Leg::Decode), worker: worker(), kind }.wants_probe()
        };
        assert!(!wants_probe(StatusCode::SERVICE_UNAVAILABLE));
        assert!(wants_probe(StatusCode::INTERNAL_SERVER_ERROR));
    }

    #[test]
    fn messages_name_the_leg_or_the_one_engine() {
        let message = |leg, kind| Fault { leg, worker: worker(), kind }.message();
        let unreachable = || FaultKind::Unreachable(String::new());
        assert_eq!(message(None, unreachable()), "the engine cannot be reached");
        assert_eq!(
            message(Some(Leg::Decode), unreachable()),
            "the decode engine cannot be reached"
        );
        let unserved = message(None, FaultKind::Unserved(Endpoint::Chat));
        assert!(unserved.contains("no InferenceTrafficPolicy"), "{unserved}");
    }

    #[test]
    fn every_reason_has_a_name_of_its_own_at_each_leg() {
        let legs = [Some(Leg::Prefill), Some(Leg::Decode), None];
        let names = |leg| FaultReason::ALL.map(|reason| reason.name(leg));
        let all: HashSet<&str> = legs.into_iter().flat_map(names).collect();
        assert_eq!(all.len(), 3 * FaultReason::ALL.len());
        assert!(names(Some(Leg::Prefill)).iter().all(|name| name.starts_with("prefill_")));
        assert!(names(Some(Leg::Decode)).iter().all(|name| name.starts_with("decode_")));
    }
}
