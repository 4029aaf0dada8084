//! [`HttpClient`]: pooled keep-alive connections to engines, backends and agents. The only module
//! that may use hyper's client.

pub(crate) mod body_copy;
pub(crate) mod client_body;
pub(crate) mod collector;
mod http1;
mod idle_connections;
pub(crate) mod pace;
pub(crate) mod received_body;
pub(crate) mod request_source;
pub(crate) mod response;
#[cfg(test)]
pub(crate) mod test_server;
pub(crate) mod tls;
pub(crate) mod unread_body;
mod watched_stream;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::Either;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use router_core::fleet::{BackendTls, Fleet};
use router_core::sglang::SplicedBody;

use self::client_body::ClientBody;
use self::http1::{Http1Client, Http1Error};
use self::idle_connections::IdleLimits;
use self::received_body::ReceivedBody;
use self::response::{ReadLimits, read_body};
use self::tls::TlsClients;
use self::watched_stream::WatchedConnector;
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

/// A request whose body is known.
pub(crate) struct KnownRequest<'a> {
    pub protocol: &'a Protocol,
    pub method: Method,
    pub path: &'a PathAndQuery,
    pub headers: &'a HeaderMap,
    pub body: SplicedBody,
    /// Learns each time that the last byte was written.
    pub on_written: Option<Arc<dyn OnWritten>>,
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
    /// The server had closed a kept connection before it read the request: it may be sent again, which opens
    /// another one. The server is not at fault.
    #[error("the server had closed the connection: {0}")]
    Unread(String),
}

/// What a server may have received of a request that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// No connection was made.
    No,
    /// It was sent to a connection that the server had closed, and no process of it has read it.
    Unread,
    /// Any part of it.
    Maybe,
}

impl SendError {
    pub(crate) fn sent(&self) -> Sent {
        match self {
            SendError::Unreachable(_)
            | SendError::ConnectTimeout(_)
            | SendError::NoResources(_) => Sent::No,
            SendError::Unread(_) => Sent::Unread,
            SendError::Broken(_) => Sent::Maybe,
        }
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
    http1: Http1Client<WatchedConnector>,
    h2c: Client<HttpConnector, OutgoingBody>,
    tls: Arc<TlsClients>,
}

impl HttpClient {
    pub(crate) fn new(settings: &GatewaySettings) -> HttpClient {
        let limits = IdleLimits {
            timeout: settings.timeouts.pool_idle_timeout,
            max_idle: settings.limits.max_idle_per_worker,
        };
        HttpClient::keeping(limits, settings.timeouts.connect_timeout)
    }

    /// A client for rare requests: connections are not kept alive.
    pub(crate) fn without_pool(connect_timeout: Duration) -> HttpClient {
        let limits = IdleLimits { timeout: Duration::ZERO, max_idle: 0 };
        HttpClient::keeping(limits, connect_timeout)
    }

    fn keeping(limits: IdleLimits, connect_timeout: Duration) -> HttpClient {
        let connector = connector(connect_timeout);
        let h2c = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.timeout)
            .pool_max_idle_per_host(limits.max_idle)
            // All requests to one server share an HTTP/2 connection: one that is dead must be noticed.
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .http2_only(true)
            .build(connector.clone());
        let tls = TlsClients::new(connector.clone(), connect_timeout, limits);
        let http1 = Http1Client::new(WatchedConnector(connector), Scheme::HTTP, limits);
        HttpClient { http1, h2c, tls: Arc::new(tls) }
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
        let answer = self.get(&authority, &path, &HeaderMap::new(), limit).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match answer.status() {
            http::StatusCode::OK => Ok(answer.into_body()),
            status => Err(status.to_string()),
        }
    }

    /// Sends a `GET` and reads up to `limit` bytes of the answer.
    ///
    /// # Errors
    /// No answer came, or it was not whole.
    pub(crate) async fn get(
        &self,
        authority: &Authority,
        path: &PathAndQuery,
        headers: &HeaderMap,
        limit: usize,
    ) -> Result<Response<Bytes>, SendError> {
        let (method, body) = (Method::GET, Bytes::new().into());
        let protocol = &Protocol::Http1;
        let request = KnownRequest { protocol, method, path, headers, body, on_written: None };
        let (head, body) = self.send_known(authority, request).await?.into_parts();
        let body = read_body(body, &ReadLimits::size(limit)).await;
        let body = body.map_err(|error| SendError::Broken(error.to_string()))?;
        Ok(Response::from_parts(head, body))
    }

    /// Sends one request and waits for the head of the answer, as [`HttpClient::send`]. If the server had
    /// closed a kept connection before it read the request, it is sent again, once.
    ///
    /// # Errors
    /// No head came.
    pub(crate) async fn send_known(
        &self,
        authority: &Authority,
        request: KnownRequest<'_>,
    ) -> Result<Response<ReceivedBody>, SendError> {
        let KnownRequest { protocol, method, path, headers, body, on_written } = request;
        let send = |body, on_written| {
            let body = Either::Left(WholeBody::new(body, on_written));
            let (protocol, authority) = (protocol.clone(), authority.clone());
            self.send(protocol, authority, method.clone(), path.clone(), headers.clone(), body)
        };
        match send(body.clone(), on_written.clone()).await {
            Err(SendError::Unread(_)) => Box::pin(send(body, on_written)).await,
            done => done,
        }
    }

    /// Sends one request and waits for the head of the answer. Dropping the future, or the answer's
    /// body before its end, closes the connection.
    ///
    /// A kept-alive connection that the server closed while it was idle is no error: the request is
    /// sent on another connection, as long as nothing of it was sent.
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
    ) -> Result<Response<ReceivedBody>, SendError> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        match protocol {
            Protocol::H2c => {
                *request.uri_mut() = absolute(authority, path)?;
                let response = self.h2c.request(request).await.map_err(h2c_error)?;
                Ok(response.map(|body| ReceivedBody::new(body, None)))
            }
            Protocol::Http1 => {
                *request.uri_mut() = path.into();
                // On the heap: the futures around it are moved several times.
                let sent = Box::pin(self.http1.send(&authority, request)).await;
                sent.map_err(SendError::from)
            }
            Protocol::Tls(tls) => {
                *request.uri_mut() = path.into();
                let client = self.tls.get(&tls).map_err(SendError::Unreachable)?;
                Box::pin(client.send(&authority, request)).await.map_err(SendError::from)
            }
        }
    }
}

fn absolute(authority: Authority, path: PathAndQuery) -> Result<Uri, SendError> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path);
    uri.build().map_err(|error| SendError::Broken(error.to_string()))
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

impl From<Http1Error> for SendError {
    fn from(error: Http1Error) -> SendError {
        match error {
            Http1Error::Connect(error) => connect_error(&*error),
            Http1Error::Broken(error) => SendError::Broken(innermost(&error)),
            Http1Error::Unread(error) => SendError::Unread(innermost(&error)),
        }
    }
}

fn h2c_error(error: Error) -> SendError {
    if error.is_connect() { connect_error(&error) } else { SendError::Broken(innermost(&error)) }
}

fn connect_error(error: &(dyn std::error::Error + 'static)) -> SendError {
    let why = innermost(error);
    if lacks_resources(error) {
        SendError::NoResources(why)
    } else if is_connect_timeout(error) {
        SendError::ConnectTimeout(why)
    } else {
        SendError::Unreachable(why)
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;

    use super::test_server::{End, OK, TestServer};
    use super::*;

    #[derive(Debug, Default)]
    struct Written(AtomicUsize);

    impl OnWritten for Written {
        fn written(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_request_that_a_closed_connection_took_with_it_is_sent_again() {
        let server = TestServer::answering(&[OK], End::Unread).await;
        let limits = IdleLimits { timeout: Duration::from_secs(60), max_idle: 8 };
        let client = HttpClient::keeping(limits, Duration::from_secs(5));
        let written = Arc::new(Written::default());
        // The first fills the connection, the second does not reach its server, and so on.
        for connections in 1..=3 {
            let body = Bytes::from(vec![b'x'; 12 << 10]);
            let request = KnownRequest {
                protocol: &Protocol::Http1,
                method: Method::POST,
                path: &PathAndQuery::from_static("/generate"),
                headers: &HeaderMap::new(),
                body: body.into(),
                on_written: Some(Arc::clone(&written) as _),
            };
            let response = client.send_known(&server.authority, request).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
            assert_eq!(server.connections(), connections);
        }
        let written = written.0.load(Ordering::Relaxed);
        assert_eq!(written, 1 + 2 + 2, "each time that it was sent");
    }

    #[test]
    fn nothing_was_sent_without_a_connection() {
        let unsent = [SendError::Unreachable, SendError::ConnectTimeout, SendError::NoResources];
        assert!(unsent.iter().all(|error| error(String::new()).sent() == Sent::No));
        assert_eq!(SendError::Unread(String::new()).sent(), Sent::Unread);
        assert_eq!(SendError::Broken(String::new()).sent(), Sent::Maybe);
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
