//! [`Reject`]: every way to fail a request, with its one status, reason and message.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use router_core::fleet::Pool;
use router_core::route::BadPath;
use router_core::sglang::fault::ClientError;
use router_core::sglang::{Endpoint, Invalid};

use super::content_coding::ACCEPTED;
use super::crash_history::CRASH_MEMORY;
use super::response_body::ResponseBody;
use crate::gateway::placement::queue::{AdmissionError, none_ready};
use crate::gateway::upstream::dispatch::AttemptError;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::http_client::client_body::ClientBodyError;
use crate::http_client::collector::OverLimit;

/// The response header with [`Reject::reason`].
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-pd-router-reason");
/// OpenAI's and Anthropic's clients retry a 502 by themselves, unless this header is `false`.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request gets no answer from an engine.
#[derive(Clone, Debug)]
pub(crate) enum Reject {
    /// No route of this listener matches.
    NoRoute,
    /// The route that matches has no usable target.
    BrokenRoute(String),
    /// The pool serves no such path to the public.
    UnknownPath(String),
    /// The path is not served for this method.
    WrongMethod {
        /// The methods that are served.
        allow: &'static str,
    },
    /// The request names no host, an invalid one, or several.
    BadHost(&'static str),
    /// The path has segments that cannot be resolved, or an escaped slash.
    BadPath(BadPath),
    /// The body has a transfer coding beside `chunked`.
    TransferCoding,
    /// A request for one listener on a TLS connection that was made for another.
    Misdirected,
    /// A prefill/decode pair cannot do this.
    Unsupported(String),
    /// The body has a coding that is not decoded.
    EncodedBody(String),
    BodyTooLarge(usize),
    /// The bodies of all requests together have reached `--max-body-memory`.
    NoMemory,
    BodyTimeout(Duration),
    BodyBroken(String),
    Invalid(Invalid),
    ModelNotFound(String),
    /// Requests with this content were running on this many engines when these crashed.
    CrashedEngines(usize),
    /// The engine answered a streamed request whole, after the head of a stream was sent.
    NoStream,
    /// Nothing serves the request: the message names the pool or Service, and the cause.
    NoWorkerReady(String),
    QueueFull,
    QueueTimeout(Duration),
    /// The route's timeout for the whole request has passed.
    Deadline,
    /// The gateway is shutting down, and the drain timeout is exceeded.
    Draining,
    Fault(Fault),
}

impl Reject {
    /// The rejection of a request that no worker of the pool can serve.
    pub(crate) fn no_worker_ready(pool: &Pool) -> Reject {
        Reject::NoWorkerReady(none_ready(pool))
    }

    /// The name of the reason: the log field, the metric's label and the response header.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Reject::NoRoute => "no_route",
            Reject::BrokenRoute(_) => "broken_route",
            Reject::UnknownPath(_) => "unknown_path",
            Reject::WrongMethod { .. } => "wrong_method",
            Reject::BadHost(_) => "bad_host",
            Reject::BadPath(_) => "bad_path",
            Reject::TransferCoding => "transfer_coding",
            Reject::Misdirected => "misdirected",
            Reject::Unsupported(_) => "unsupported",
            Reject::EncodedBody(_) => "encoded_body",
            Reject::BodyTooLarge(_) => "body_too_large",
            Reject::NoMemory => "body_memory",
            Reject::BodyTimeout(_) => "body_late",
            Reject::BodyBroken(_) => "body_broken",
            Reject::Invalid(_) => "invalid_request",
            Reject::ModelNotFound(_) => "model_not_found",
            Reject::CrashedEngines(_) => "crashed_engines",
            Reject::NoStream => "no_stream",
            Reject::NoWorkerReady(_) => "no_worker_ready",
            Reject::QueueFull => "queue_full",
            Reject::QueueTimeout(_) => "queue_timeout",
            Reject::Deadline => "request_timeout",
            Reject::Draining => "draining",
            Reject::Fault(fault) => fault.reason(),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Reject::NoRoute | Reject::UnknownPath(_) | Reject::ModelNotFound(_) => {
                StatusCode::NOT_FOUND
            }
            Reject::BrokenRoute(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Reject::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Reject::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Reject::Unsupported(_) | Reject::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Reject::EncodedBody(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Reject::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Reject::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Reject::BadHost(_)
            | Reject::BadPath(_)
            | Reject::BodyBroken(_)
            | Reject::Invalid(_) => StatusCode::BAD_REQUEST,
            Reject::NoWorkerReady(_)
            | Reject::NoMemory
            | Reject::QueueTimeout(_)
            | Reject::Draining => StatusCode::SERVICE_UNAVAILABLE,
            // Not a 5xx, which clients and proxies send again.
            Reject::CrashedEngines(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Reject::NoStream => StatusCode::BAD_GATEWAY,
            Reject::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            Reject::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Reject::Fault(fault) => fault.status(),
        }
    }

    /// Whether the same request fails again whenever it is sent. OpenAI's and Anthropic's clients
    /// retry every 5xx otherwise.
    fn is_permanent(&self) -> bool {
        match self {
            Reject::Fault(fault) => {
                matches!(fault.kind, FaultKind::Died | FaultKind::TooLarge(_))
                    || fault.status() == StatusCode::NOT_IMPLEMENTED
            }
            // A new connection, or the rest of a body, may be all that is missing.
            Reject::Misdirected | Reject::BodyBroken(_) | Reject::BodyTimeout(_) => false,
            Reject::QueueFull => false,
            other => {
                other.status().is_client_error() || other.status() == StatusCode::NOT_IMPLEMENTED
            }
        }
    }

    /// Seconds after which the client may retry.
    fn retry_after(&self) -> Option<u32> {
        match self {
            Reject::NoWorkerReady(_)
            | Reject::NoMemory
            | Reject::QueueFull
            | Reject::QueueTimeout(_)
            | Reject::Draining => Some(1),
            Reject::Fault(fault) if fault.passes() => Some(1),
            _ => None,
        }
    }

    /// The message for the client. It contains no engine's address.
    pub(crate) fn message(&self) -> String {
        match self {
            Reject::NoRoute => "no HTTPRoute matches this request".to_owned(),
            Reject::BrokenRoute(why) => format!("the HTTPRoute cannot be served: {why}"),
            Reject::UnknownPath(path) => format!("{} is not served here", excerpt(path)),
            Reject::WrongMethod { allow } => format!("this path is served for {allow}"),
            Reject::BadHost(why) => (*why).to_owned(),
            Reject::BadPath(why) => why.to_string(),
            Reject::TransferCoding => {
                "the only transfer coding that is served is chunked, once".to_owned()
            }
            Reject::Misdirected => {
                "this connection was made for another host; open a new one for this host".to_owned()
            }
            Reject::Unsupported(why) => why.clone(),
            Reject::EncodedBody(encoding) => {
                let encoding = excerpt(encoding);
                format!(
                    "content-encoding {encoding} is not supported; send the body unencoded, or as one \
                     of {ACCEPTED}"
                )
            }
            Reject::BodyTooLarge(limit) => format!("the request body is over {limit} bytes"),
            Reject::NoMemory => "too many large requests at once".to_owned(),
            Reject::BodyTimeout(limit) => {
                format!(
                    "the request body came too slowly: nothing for {limit:?}, or too little in all"
                )
            }
            Reject::BodyBroken(why) => format!("the request body could not be read: {why}"),
            Reject::Invalid(invalid) => invalid.message.clone(),
            Reject::ModelNotFound(model) => {
                format!("the model `{}` does not exist here", excerpt(model))
            }
            Reject::CrashedEngines(count) => format!(
                "{count} engines crashed while they ran a request with this content; it is refused \
                 for {} minutes",
                CRASH_MEMORY.as_secs() / 60
            ),
            Reject::NoStream => {
                "the engine answered a streamed request without a stream".to_owned()
            }
            Reject::NoWorkerReady(why) => why.clone(),
            Reject::QueueFull => "too many requests are waiting for an engine".to_owned(),
            Reject::QueueTimeout(limit) => {
                format!("no engine had capacity for the request within {limit:?}")
            }
            Reject::Draining => "the gateway is shutting down".to_owned(),
            Reject::Deadline => "the request took longer than its route allows".to_owned(),
            Reject::Fault(fault) => fault.message(),
        }
    }

    /// The message for the log: with the operating system's error, which is not for the client.
    pub(crate) fn detail(&self) -> String {
        match self {
            Reject::Fault(fault) => fault.detail(),
            other => other.message(),
        }
    }

    /// The error in the form that clients expect.
    fn error(&self) -> ClientError {
        let error = ClientError::new(self.status().as_u16(), self.message());
        let error = ClientError { code: Some(self.reason().to_owned()), ..error };
        match self {
            Reject::Invalid(invalid) => {
                ClientError { param: invalid.param.map(str::to_owned), ..error }
            }
            Reject::ModelNotFound(_) => ClientError { param: Some("model".to_owned()), ..error },
            Reject::Fault(Fault { kind: FaultKind::Engine { error: engine, .. }, .. }) => {
                ClientError { kind: engine.kind.clone(), param: engine.param.clone(), ..error }
            }
            _ => error,
        }
    }

    /// The events that end a stream of `endpoint` with this error.
    pub(crate) fn events(&self, endpoint: Endpoint) -> Bytes {
        self.error().events(endpoint)
    }

    /// The response, in the format that clients of `endpoint` expect.
    pub(crate) fn into_response(self, endpoint: Endpoint) -> Response<ResponseBody> {
        let body = self.error().body(endpoint);
        let mut response = Response::new(ResponseBody::full(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(REASON, HeaderValue::from_static(self.reason()));
        if let Reject::WrongMethod { allow } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Reject::TransferCoding = self {
            // Where such a body ends is read in different ways.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Reject::EncodedBody(_) = self {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED));
        }
        if self.is_permanent() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Reject::Fault(Fault {
            kind: FaultKind::Engine { headers: Some(sent), .. }, ..
        }) = &self
        {
            add_engine_headers(sent, headers);
        }
        response
    }
}

/// Maximum length of a client's text in a message and its log line, in bytes.
const MAX_EXCERPT: usize = 256;

/// The beginning of a client's text, without control characters, which a terminal would obey.
fn excerpt(text: &str) -> String {
    let start = &text[..text.floor_char_boundary(MAX_EXCERPT)];
    let shown = start.chars().map(|c| if c.is_control() { ' ' } else { c });
    let rest = if start.len() < text.len() { "..." } else { "" };
    shown.chain(rest.chars()).collect()
}

/// Adds the engine's challenges, and its `Retry-After` if it is longer than the gateway's.
fn add_engine_headers(sent: &HeaderMap, headers: &mut HeaderMap) {
    for challenge in sent.get_all(WWW_AUTHENTICATE) {
        headers.append(WWW_AUTHENTICATE, challenge.clone());
    }
    let seconds = |value: &HeaderValue| value.to_str().ok()?.trim().parse::<u64>().ok();
    if let Some(wanted) = sent.get(RETRY_AFTER) {
        let own = headers.get(RETRY_AFTER).and_then(seconds).unwrap_or(0);
        // A date is the engine's own wish, too.
        if seconds(wanted).is_none_or(|wanted| wanted > own) {
            headers.insert(RETRY_AFTER, wanted.clone());
        }
    }
}

impl From<Fault> for Reject {
    fn from(fault: Fault) -> Reject {
        Reject::Fault(fault)
    }
}

impl From<ClientBodyError> for Reject {
    fn from(error: ClientBodyError) -> Reject {
        match error {
            ClientBodyError::TooLarge(limit) => Reject::BodyTooLarge(limit),
            ClientBodyError::Late(limit) => Reject::BodyTimeout(limit),
            ClientBodyError::Broken(why) => Reject::BodyBroken(why),
        }
    }
}

impl From<OverLimit> for Reject {
    fn from(over: OverLimit) -> Reject {
        match over {
            OverLimit::TooLarge(limit) => Reject::BodyTooLarge(limit),
            OverLimit::NoMemory => Reject::NoMemory,
        }
    }
}

impl From<AttemptError> for Reject {
    fn from(error: AttemptError) -> Reject {
        match error {
            AttemptError::Fault(fault) => Reject::Fault(fault),
            AttemptError::Deadline => Reject::Deadline,
            AttemptError::Draining => Reject::Draining,
        }
    }
}

impl From<AdmissionError> for Reject {
    fn from(error: AdmissionError) -> Reject {
        match error {
            AdmissionError::NoWorkerReady(why) => Reject::NoWorkerReady(why),
            AdmissionError::ModelNotFound(model) => Reject::ModelNotFound(model),
            AdmissionError::ModelRequired => Reject::model_required(),
            AdmissionError::QueueFull => Reject::QueueFull,
            AdmissionError::QueueTimeout(limit) => Reject::QueueTimeout(limit),
            AdmissionError::Deadline => Reject::Deadline,
        }
    }
}

impl From<Invalid> for Reject {
    fn from(invalid: Invalid) -> Reject {
        Reject::Invalid(invalid)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use router_core::fleet::{Worker, WorkerKey};

    use super::*;
    use crate::gateway::upstream::leg::plain_refusal;

    /// The response to a request that an engine refused with this status and these headers.
    fn refused(status: StatusCode, sent: &[(HeaderName, &'static str)]) -> Response<ResponseBody> {
        let sent = sent.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        let key = WorkerKey { uid: "uid".into(), address: ([127, 0, 0, 1], 1).into() };
        let worker = Arc::new(Worker::new(key, "ns/pod"));
        let kind = plain_refusal(status, &sent.collect(), b"{\"error\":\"no\"}");
        Reject::from(Fault { leg: None, worker, kind }).into_response(Endpoint::Chat)
    }

    fn header(response: &Response<ResponseBody>, name: HeaderName) -> Option<&str> {
        response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn a_client_s_text_is_shown_without_control_characters() {
        let reject = Reject::ModelNotFound("\u{1b}[2J\u{9b}".to_owned() + &"m".repeat(300));
        let message = reject.message();
        assert!(!message.contains(char::is_control) && message.contains("m..."), "{message:?}");
    }

    #[test]
    fn an_engine_s_retry_after_is_kept_if_it_is_longer() {
        let retry_after = |status, sent: &'static str| {
            let response = refused(status, &[(RETRY_AFTER, sent)]);
            header(&response, RETRY_AFTER).map(str::to_owned)
        };
        let (busy, many) = (StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(retry_after(busy, "7").as_deref(), Some("7"));
        assert_eq!(retry_after(busy, "0").as_deref(), Some("1"), "the gateway's own");
        assert_eq!(retry_after(many, "7").as_deref(), Some("7"));
        assert_eq!(header(&refused(busy, &[]), RETRY_AFTER), Some("1"));
        assert_eq!(header(&refused(many, &[]), RETRY_AFTER), None);
    }

    #[test]
    fn an_engine_s_challenge_comes_with_its_401() {
        let response = refused(StatusCode::UNAUTHORIZED, &[(WWW_AUTHENTICATE, "Bearer")]);
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(header(&response, WWW_AUTHENTICATE), Some("Bearer"));
        assert!(header(&response, REASON).is_some_and(|reason| reason.ends_with("refused")));
    }

    #[test]
    fn clients_are_asked_not_to_retry_what_is_permanent() {
        let asked = |reject: Reject| {
            let response = reject.into_response(Endpoint::Chat);
            header(&response, SHOULD_RETRY).map(str::to_owned)
        };
        for permanent in [
            Reject::Unsupported("no".to_owned()),
            Reject::UnknownPath("/x".to_owned()),
            Reject::ModelNotFound("m".to_owned()),
            Reject::BodyTooLarge(1),
            Reject::model_required(),
        ] {
            assert_eq!(asked(permanent.clone()).as_deref(), Some("false"), "{permanent:?}");
        }
        for passing in [Reject::QueueFull, Reject::NoMemory, Reject::Draining, Reject::Deadline] {
            assert_eq!(asked(passing.clone()), None, "{passing:?}");
        }
        let unserved = refused(StatusCode::NOT_IMPLEMENTED, &[]);
        assert_eq!(header(&unserved, SHOULD_RETRY), Some("false"));
    }
}
