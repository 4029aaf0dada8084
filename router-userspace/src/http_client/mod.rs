//! [`HttpClient`]: pooled keep-alive connections to engines, backends and agents. The only module
//! that may use hyper's client.

pub(crate) mod reclaimable;
mod whole;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Either, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use router_core::sglang::SplicedBody;

use self::reclaimable::ReclaimableBody;
use self::whole::WholeBody;
use crate::client_body::{ClientBody, ClientBodyError};
use crate::config::GatewaySettings;

/// The body of a request: known bytes, or a client's body that is passed on as it arrives.
pub(crate) type OutgoingBody = Either<WholeBody, Limited<ReclaimableBody<ClientBody>>>;

/// A body of known bytes.
pub(crate) fn whole(body: impl Into<SplicedBody>) -> OutgoingBody {
    Either::Left(WholeBody::new(body.into()))
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// The connection was refused: nothing was sent.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The attempt to connect timed out, or no route leads there: nothing was sent.
    #[error("no answer to the attempt to connect: {0}")]
    ConnectTimeout(String),
    /// The connection ended before the answer was read; the server may have begun.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The client's body is over the limit.
    #[error("the body is over its limit")]
    BodyTooLarge,
    /// The client's body is malformed, or the client has left.
    #[error("the client's body broke: {0}")]
    ClientBody(String),
}

impl SendError {
    /// Whether no connection was made, so that no server has received any part of the request.
    pub(crate) fn is_unsent(&self) -> bool {
        matches!(self, SendError::Unreachable(_) | SendError::ConnectTimeout(_))
    }
}

/// The protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS and without an upgrade (prior knowledge).
    H2c,
}

/// Connections to every server, kept alive between requests; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    http1: Client<HttpConnector, OutgoingBody>,
    h2c: Client<HttpConnector, OutgoingBody>,
}

impl HttpClient {
    pub(crate) fn new(settings: &GatewaySettings) -> HttpClient {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(settings.timeouts.connect_timeout));
        connector.set_keepalive(Some(Duration::from_secs(30)));
        let mut client = Client::builder(TokioExecutor::new());
        client
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.timeouts.pool_idle_timeout)
            .pool_max_idle_per_host(settings.limits.max_idle_per_worker);
        let http1 = client.build(connector.clone());
        HttpClient { http1, h2c: client.http2_only(true).build(connector) }
    }

    /// A client for rare requests: connections are not kept alive.
    pub(crate) fn without_pool(connect_timeout: Duration) -> HttpClient {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(connect_timeout));
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_max_idle_per_host(0);
        let http1 = client.build(connector.clone());
        HttpClient { http1, h2c: client.http2_only(true).build(connector) }
    }

    /// Sends a `GET` and returns the body of the answer.
    ///
    /// # Errors
    /// No answer came, its status is not 200, or its body is over `limit` bytes.
    pub(crate) async fn fetch(
        &self,
        authority: Authority,
        path: PathAndQuery,
        limit: usize,
    ) -> Result<Bytes, String> {
        let (headers, empty) = (HeaderMap::new(), whole(Bytes::new()));
        let answer = self
            .send(Protocol::Http1, authority, Method::GET, path, headers, empty)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = read_body(answer.into_body(), limit).await?;
        if status == http::StatusCode::OK { Ok(body) } else { Err(status.to_string()) }
    }

    /// Sends one request and waits for the head of the answer. Dropping the future, or the answer's
    /// body before its end, closes the connection.
    ///
    /// A kept-alive connection that the server closed while it was idle is no error: the request is
    /// sent again on another connection, as long as nothing of it was read.
    ///
    /// # Errors
    /// No head came.
    pub(crate) async fn send(
        &self,
        protocol: Protocol,
        authority: Authority,
        method: Method,
        path: PathAndQuery,
        headers: HeaderMap,
        body: OutgoingBody,
    ) -> Result<Response<Incoming>, SendError> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        parts.path_and_query = Some(path);
        // All three parts are set, which is all that this conversion asks for.
        let uri = Uri::from_parts(parts).map_err(|error| SendError::Broken(error.to_string()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let client = match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::H2c => &self.h2c,
        };
        client.request(request).await.map_err(send_error)
    }
}

/// Reads the whole body of a response.
///
/// # Errors
/// The connection broke, or the body is over `limit` bytes.
pub(crate) async fn read_body(mut body: Incoming, limit: usize) -> Result<Bytes, String> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| innermost(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err(format!("the answer is over {limit} bytes"));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn send_error(error: Error) -> SendError {
    if chain(&error).any(|error| error.is::<LengthLimitError>()) {
        SendError::BodyTooLarge
    } else if let Some(broken) =
        chain(&error).find_map(|error| error.downcast_ref::<ClientBodyError>())
    {
        SendError::ClientBody(broken.to_string())
    } else if error.is_connect() {
        let why = innermost(&error);
        if is_connect_timeout(&error) {
            SendError::ConnectTimeout(why)
        } else {
            SendError::Unreachable(why)
        }
    } else {
        SendError::Broken(innermost(&error))
    }
}

fn is_connect_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    let kinds = chain(error).filter_map(|error| error.downcast_ref::<std::io::Error>());
    kinds
        .map(std::io::Error::kind)
        .any(|kind| matches!(kind, TimedOut | HostUnreachable | NetworkUnreachable))
}

fn chain<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The last cause of an error: the operating system's message, without the layers around it.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}
