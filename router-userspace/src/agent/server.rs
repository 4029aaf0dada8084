//! The agent's own port: /v1/loads, /metrics, /livez, /readyz.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use super::loads::Loads;
use super::metrics;

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 64;
/// How long a request's head may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Who may ask, and where the answers come from.
pub(super) struct Server<S> {
    pub(super) token: Option<String>,
    pub(super) snapshot: S,
}

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
            let server = Arc::clone(&server);
            connections.spawn(async move {
                let answer = service_fn(|request| {
                    let answer = server.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_LIMIT)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    debug!(%peer, %error, "connection");
                }
                drop(seat);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match path {
            "/livez" | "/readyz" => return plain(StatusCode::OK, "ok\n"),
            "/v1/loads" | "/metrics" => {}
            _ => return plain(StatusCode::NOT_FOUND, "/v1/loads, /metrics, /livez, /readyz\n"),
        }
        if !self.may_ask(request) {
            return plain(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
        }
        let loads = (self.snapshot)();
        if path == "/metrics" {
            return plain(StatusCode::OK, metrics::text(&loads));
        }
        let Ok(body) = serde_json::to_vec(&loads) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "not JSON\n");
        };
        let mut answer = Response::new(Full::new(body.into()));
        let json = header::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        answer
    }

    fn may_ask(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| same(given, token.as_bytes()))
    }
}

/// Takes as long for a wrong byte at the start as at the end.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Loopback, or a token: what an agent tells is nobody else's business.
pub(super) fn may_listen(address: SocketAddr, token: Option<&str>) -> bool {
    address.ip().is_loopback() || token.is_some_and(|token| !token.is_empty())
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_a_token_is_needed() {
        let outside: SocketAddr = "0.0.0.0:1".parse().unwrap();
        assert!(!may_listen(outside, None) && !may_listen(outside, Some("")));
        assert!(may_listen(outside, Some("secret")));
        assert!(may_listen("[::1]:1".parse().unwrap(), None));
        assert!(same(b"secret", b"secret") && !same(b"secret", b"secreT") && !same(b"", b"x"));
    }
}
