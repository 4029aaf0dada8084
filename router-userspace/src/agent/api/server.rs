//! The agent's HTTP server: /v1/loads, /v1/loads/stream, /v1/clock, /metrics, /livez and /readyz.

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
use tracing::debug;

use crate::agent::api::loads::Loads;
use crate::agent::api::metrics;
use crate::connection_slots::{ConnectionSlot, ConnectionSlots, set_options};
use crate::feedback::publish::{CONTENT_TYPE, Publisher};
use crate::token::Guard;

/// Maximum number of open connections, above the number of subscribers. When it is reached, the one whose
/// last request is the oldest is closed for a new one, subscribers excepted.
const MAX_CONNECTIONS: usize = 128;
/// Bytes that may be buffered for a client that does not read. Frames beyond it are replaced by a full
/// frame.
const SEND_BUFFER: usize = 64 << 10;
/// Time that a client has to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const UNKNOWN_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The server: who is admitted, and what is served.
pub(in crate::agent) struct Server<S> {
    pub(in crate::agent) guard: Guard,
    /// True once the maps hold the pods.
    pub(in crate::agent) ready: Arc<AtomicBool>,
    pub(in crate::agent) snapshot: S,
    pub(in crate::agent) publisher: Publisher,
}

type ServerResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl<S: Fn() -> Loads + Send + Sync + 'static> Server<S> {
    /// Serves until dropped.
    pub(in crate::agent) async fn serve(self, listener: TcpListener) {
        let server = Arc::new(self);
        let slots = ConnectionSlots::new(MAX_CONNECTIONS);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the client has closed the connection.
                    debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            bound_buffer(&stream);
            set_options(&stream);
            let Some(slot) = slots.admit().await else { continue };
            let server = Arc::clone(&server);
            // If the client has closed it, the guard treats it as not from loopback.
            let local_address = stream.local_addr().unwrap_or(UNKNOWN_ADDRESS);
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let response = server.respond(&request, local_address, &slot);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(SEND_BUFFER)
                    .serve_connection(TokioIo::new(stream), service);
                if let Some(Err(error)) = slot.run(connection).await {
                    debug!(%peer, %error, "connection failed");
                }
            });
        }
    }

    fn respond(
        &self,
        request: &Request<Incoming>,
        local_address: SocketAddr,
        slot: &ConnectionSlot,
    ) -> ServerResponse {
        slot.used();
        let path = request.uri().path();
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n");
        }
        match path {
            "/livez" => return plain(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Relaxed) => {
                return plain(StatusCode::OK, "ok\n");
            }
            "/readyz" => {
                let reason = "pods have not been read yet\n";
                return plain(StatusCode::SERVICE_UNAVAILABLE, reason);
            }
            "/v1/loads" | "/v1/loads/stream" | "/v1/clock" | "/metrics" => {}
            _ => {
                let paths =
                    "paths: /v1/loads, /v1/loads/stream, /v1/clock, /metrics, /livez, /readyz\n";
                return plain(StatusCode::NOT_FOUND, paths);
            }
        }
        if !self.guard.admits(request.headers(), local_address) {
            let mut response = plain(StatusCode::UNAUTHORIZED, self.guard.refusal());
            let bearer = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            return response;
        }
        if path == "/v1/loads/stream" {
            return self.stream(slot);
        }
        if path == "/v1/clock" {
            let (instance, clock_us) = self.publisher.clock();
            let body = format!("{{\"instance\":{instance},\"clock_us\":{clock_us}}}");
            return typed("application/json", body);
        }
        let loads = (self.snapshot)();
        if path == "/metrics" {
            let (kind, page) = metrics::page(loads, request.headers());
            return typed(kind, page);
        }
        let Ok(body) = serde_json::to_vec(&loads) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot write JSON\n");
        };
        typed("application/json", body)
    }

    fn stream(&self, slot: &ConnectionSlot) -> ServerResponse {
        let Some(frames) = self.publisher.subscribe() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many subscribers\n");
        };
        slot.streams();
        let mut response = Response::new(frames);
        let binary = header::HeaderValue::from_static(CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, binary);
        response
    }
}

/// Whether the agent may listen on `address`: beyond loopback it needs a guard.
pub(in crate::agent) fn may_listen(address: SocketAddr, guard: &Guard) -> bool {
    address.ip().is_loopback() || !matches!(guard, Guard::Loopback)
}

/// Bounds what a client that does not read can hold.
fn bound_buffer(stream: &tokio::net::TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_send_buffer_size(SEND_BUFFER) {
        debug!(%error, "setsockopt failed");
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> ServerResponse {
    let mut response = typed("text/plain; charset=utf-8", text);
    *response.status_mut() = status;
    response
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> ServerResponse {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    let content_type = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_beyond_loopback_requires_a_token_or_a_flag() {
        let outside: SocketAddr = "0.0.0.0:1".parse().unwrap();
        assert!(!may_listen(outside, &Guard::new(None, false)));
        assert!(may_listen(outside, &Guard::new(None, true)));
        assert!(may_listen(outside, &Guard::new(Some("token".as_ref()), false)));
        assert!(may_listen("[::1]:1".parse().unwrap(), &Guard::new(None, false)));
    }

    #[tokio::test]
    async fn probes_are_answered_beside_idle_connections() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server {
            guard: Guard::new(None, true),
            ready: Arc::new(AtomicBool::new(true)),
            snapshot: || -> Loads { unreachable!("no loads are asked for") },
            publisher: Publisher::new(1),
        };
        let serving = tokio::spawn(server.serve(listener));
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 12 {
            idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        for path in ["/livez", "/readyz"] {
            let mut probe = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            probe.write_all(request.as_bytes()).await.unwrap();
            let mut status = [0; 12];
            let answered = probe.read_exact(&mut status);
            tokio::time::timeout(HEAD_TIMEOUT / 2, answered).await.unwrap().unwrap();
            assert_eq!(&status, b"HTTP/1.1 200", "{path}");
        }
        serving.abort();
    }
}
