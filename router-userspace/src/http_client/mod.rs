//! [`HttpClient`]: pooled keep-alive connections to engines, backends and agents. The only module
//! that may use hyper's client.

pub(crate) mod body_copy;
pub(crate) mod client_body;
pub(crate) mod collector;
pub(crate) mod pace;
pub(crate) mod request_source;
pub(crate) mod response;
pub(crate) mod tls;
pub(crate) mod unread_body;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use router_core::fleet::{BackendTls, Fleet};
use router_core::sglang::SplicedBody;

use self::client_body::ClientBody;
use self::response::{ReadLimits, read_body};
use self::tls::TlsClients;
pub(crate) use self::whole::OnWritten;
use self::whole::WholeBody;
use crate::config::GatewaySettings;

/// Interval of PING frames on HTTP/2 connections, and the time that a server has to answer one. After it,
/// the connection and its requests end, and the next request opens another connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of TCP keepalive probes while nothing is sent: an engine computes for minutes before it answers.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Time for which what was sent, or a keepalive probe, may stay unacknowledged. Linux also ends a connection
/// whose peer has kept its receive window at 0 for as long, although it acknowledges.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a request: known bytes, or a client's body that is passed on as it arrives.
pub(crate) type OutgoingBody = Either<WholeBody, ClientBody>;

/// A body of known bytes.
pub(crate) fn whole(body: impl Into<SplicedBody>) -> OutgoingBody {
    Either::Left(WholeBody::new(body.into(), None))
}

/// A body of known bytes that reports when the last of them was written.
pub(crate) fn reported(
    body: impl Into<SplicedBody>,
    on_written: Option<Arc<dyn OnWritten>>,
) -> OutgoingBody {
    Either::Left(WholeBody::new(body.into(), on_written))
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
    /// The gateway itself lacks what a connection needs: file descriptors, ports or memory for sockets.
    /// Nothing was sent, and the server is not at fault.
    #[error("the gateway cannot connect: {0}")]
    NoResources(String),
    /// The connection ended before the answer was read; the server may have begun.
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl SendError {
    /// Whether no connection was made, so that no server has received any part of the request.
    pub(crate) fn is_unsent(&self) -> bool {
        !matches!(self, SendError::Broken(_))
    }
}

/// The protocol of a server.
#[derive(Clone, Debug)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS and without an upgrade (prior knowledge).
    H2c,
    /// HTTP/1.1 over TLS.
    Tls(Arc<BackendTls>),
}

/// Connections to every server, kept alive between requests; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    http1: Client<HttpConnector, OutgoingBody>,
    h2c: Client<HttpConnector, OutgoingBody>,
    tls: Arc<TlsClients>,
}

impl HttpClient {
    pub(crate) fn new(settings: &GatewaySettings) -> HttpClient {
        let connector = connector(settings.timeouts.connect_timeout);
        let mut client = Client::builder(TokioExecutor::new());
        client
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.timeouts.pool_idle_timeout)
            .pool_max_idle_per_host(settings.limits.max_idle_per_worker)
            // All requests to one server share an HTTP/2 connection: one that is dead must be noticed.
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true);
        HttpClient::from_builder(client, connector, settings.timeouts.connect_timeout)
    }

    /// A client for rare requests: connections are not kept alive.
    pub(crate) fn without_pool(connect_timeout: Duration) -> HttpClient {
        let connector = connector(connect_timeout);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_max_idle_per_host(0);
        HttpClient::from_builder(client, connector, connect_timeout)
    }

    fn from_builder(
        mut client: Builder,
        connector: HttpConnector,
        connect_timeout: Duration,
    ) -> HttpClient {
        let tls = TlsClients::new(client.clone(), connector.clone(), connect_timeout);
        let tls = Arc::new(tls);
        let http1 = client.build(connector.clone());
        HttpClient { http1, h2c: client.http2_only(true).build(connector), tls }
    }

    /// Keeps the connections over TLS that Services of `fleet` need, and drops all others. To be called
    /// before requests see the fleet.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        self.tls.follow(fleet);
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
        let body = read_body(answer.into_body(), &ReadLimits::size(limit)).await;
        let body = body.map_err(|error| error.to_string())?;
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
        let is_tls = matches!(protocol, Protocol::Tls(_));
        parts.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(authority);
        parts.path_and_query = Some(path);
        // All three parts are set, which is all that this conversion asks for.
        let uri = Uri::from_parts(parts).map_err(|error| SendError::Broken(error.to_string()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let sent = match protocol {
            Protocol::Http1 => self.http1.request(request),
            Protocol::H2c => self.h2c.request(request),
            Protocol::Tls(tls) => {
                let client = self.tls.get(&tls).map_err(SendError::Unreachable)?;
                client.request(request)
            }
        };
        sent.await.map_err(send_error)
    }
}

/// Makes connections that end when their server is gone.
fn connector(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    connector
}

fn send_error(error: Error) -> SendError {
    if error.is_connect() {
        let why = innermost(&error);
        if lacks_resources(&error) {
            SendError::NoResources(why)
        } else if is_connect_timeout(&error) {
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
    system_errors(error)
        .map(std::io::Error::kind)
        .any(|kind| matches!(kind, TimedOut | HostUnreachable | NetworkUnreachable))
}

/// Whether an attempt to connect failed for want of something that the gateway's own host gives.
fn lacks_resources(error: &(dyn std::error::Error + 'static)) -> bool {
    system_errors(error).any(is_shortage)
}

/// Whether the system call failed because the process or its host has run out of file descriptors,
/// local ports, or memory for sockets.
pub(crate) fn is_shortage(error: &std::io::Error) -> bool {
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn system_errors<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e std::io::Error> {
    chain(error).filter_map(|error| error.downcast_ref::<std::io::Error>())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_was_sent_unless_a_connection_broke() {
        let unsent = [SendError::Unreachable, SendError::ConnectTimeout, SendError::NoResources];
        assert!(unsent.iter().all(|error| error(String::new()).is_unsent()));
        assert!(!SendError::Broken(String::new()).is_unsent());
    }

    #[test]
    fn a_shortage_of_the_gateway_is_not_a_refused_connection() {
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::EADDRNOTAVAIL] {
            assert!(is_shortage(&std::io::Error::from_raw_os_error(code)), "{code}");
        }
        for code in [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::ETIMEDOUT] {
            assert!(!is_shortage(&std::io::Error::from_raw_os_error(code)), "{code}");
        }
    }
}
