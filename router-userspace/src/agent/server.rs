//! The agent's own port: /v1/loads, /v1/loads/stream, /metrics, /livez, /readyz.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use super::loads::Loads;
use super::metrics;
use crate::feedback::publish::{CONTENT_TYPE, Publisher};
use crate::token::Guard;

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 128;
/// What a connection may have on its way to a reader that does not read. The rest of what it
/// misses is replaced by a report.
const SEND_BUFFER: usize = 64 << 10;
/// One that takes nothing for so long is let go.
const STUCK: Duration = Duration::from_secs(10);
/// How long a request's head may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Who may ask, and where the answers come from.
pub(super) struct Server<S> {
    pub(super) guard: Guard,
    /// The pods have been read once.
    pub(super) ready: Arc<AtomicBool>,
    pub(super) snapshot: S,
    pub(super) publisher: Publisher,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl<S: Fn() -> Loads + Send + Sync + 'static> Server<S> {
    /// Serves until dropped.
    pub(super) async fn serve(self, listener: TcpListener) {
        let server = Arc::new(self);
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a client that is gone already.
                    debug!(%error, "accepting");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            hurry(&stream);
            let server = Arc::clone(&server);
            // One that is gone already came to no address: to one outside, for the guard.
            let at = stream.local_addr().unwrap_or(NOWHERE);
            connections.spawn(async move {
                let answer = service_fn(|request| {
                    let answer = server.answer(&request, at);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_LIMIT)
                    .max_buf_size(SEND_BUFFER)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    debug!(%peer, %error, "connection");
                }
                drop(seat);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>, at: SocketAddr) -> Answer {
        let path = request.uri().path();
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match path {
            "/livez" => return plain(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Relaxed) => {
                return plain(StatusCode::OK, "ok\n");
            }
            "/readyz" => {
                let unread = "no pods have been read yet\n";
                return plain(StatusCode::SERVICE_UNAVAILABLE, unread);
            }
            "/v1/loads" | "/v1/loads/stream" | "/metrics" => {}
            _ => {
                let known = "/v1/loads, /v1/loads/stream, /metrics, /livez, /readyz\n";
                return plain(StatusCode::NOT_FOUND, known);
            }
        }
        if !self.guard.admits(request.headers(), at) {
            let mut answer = plain(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
            let bearer = header::HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            return answer;
        }
        if path == "/v1/loads/stream" {
            return self.stream();
        }
        let loads = (self.snapshot)();
        if path == "/metrics" {
            return plain(StatusCode::OK, metrics::text(&loads));
        }
        let Ok(body) = serde_json::to_vec(&loads) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "not JSON\n");
        };
        let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
        let json = header::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        answer
    }

    fn stream(&self) -> Answer {
        let Some(frames) = self.publisher.subscribe() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many gateways listen\n");
        };
        let mut answer = Response::new(frames);
        let binary = header::HeaderValue::from_static(CONTENT_TYPE);
        answer.headers_mut().insert(header::CONTENT_TYPE, binary);
        answer
    }
}

/// Loopback, or something to admit others by: what an agent tells is nobody else's business.
pub(super) fn may_listen(address: SocketAddr, guard: &Guard) -> bool {
    address.ip().is_loopback() || !matches!(guard, Guard::Loopback)
}

/// A frame goes out at once, and a reader that does not read holds little and not for long.
fn hurry(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let set = [
        stream.set_nodelay(true),
        socket.set_send_buffer_size(SEND_BUFFER),
        socket.set_tcp_user_timeout(Some(STUCK)),
    ];
    for error in set.into_iter().filter_map(Result::err) {
        debug!(%error, "a socket's options");
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()).boxed_unsync());
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_a_token_or_a_flag_is_needed() {
        let outside: SocketAddr = "0.0.0.0:1".parse().unwrap();
        assert!(!may_listen(outside, &Guard::new(None, false)));
        assert!(may_listen(outside, &Guard::new(None, true)));
        assert!(may_listen(outside, &Guard::new(Some("token".as_ref()), false)));
        assert!(may_listen("[::1]:1".parse().unwrap(), &Guard::new(None, false)));
    }
}
