//! The admin port: `/livez`, `/readyz`, `/metrics`, `/fleet` and `/requests`.

mod fleet_page;
mod requests_page;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::readiness::Readiness;
use super::shared::Gateway;
use crate::connection_slots::{ConnectionSlots, set_options};
use crate::metrics::exposition;
use crate::send_timeout::SendTimeout;
use crate::token::Guard;

/// Maximum number of connections to the admin port. When it is reached, the one whose last request is
/// the oldest is closed for a new one.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which a connection is closed whose client reads no part of its answers.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The state that the admin port serves.
#[derive(Clone)]
pub(crate) struct AdminState {
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) gateway: Arc<Gateway>,
    /// Locked while `/metrics` is answered: the gauges of the workers are cleared and set again.
    pub(crate) registry: Arc<Mutex<Registry>>,
    /// Checks the bearer token of every path but `/livez` and `/readyz`.
    pub(crate) guard: Arc<Guard>,
}

/// The bound admin port.
pub(crate) struct Admin(TcpListener);

impl Admin {
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<Admin> {
        let listener = TcpListener::bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "admin port opened");
        Ok(Admin(listener))
    }

    /// Serves until `stop`.
    pub(crate) async fn run(self, state: AdminState, stop: CancellationToken) {
        let slots = ConnectionSlots::new(MAX_CONNECTIONS);
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                accepted = self.0.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept admin connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => return,
            };
            set_options(&stream);
            let Some(slot) = slots.admit().await else { continue };
            // A connection that is gone already has no local address. The guard takes the unspecified
            // address for one that is reachable from outside.
            let at = stream.local_addr().unwrap_or(UNSPECIFIED);
            let (state, stop) = (state.clone(), stop.clone());
            connections.spawn(async move {
                let answer = service_fn(|request| {
                    slot.used();
                    let response = state.answer(&request, at);
                    async move { Ok::<_, std::convert::Infallible>(response) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                let connection = server
                    .serve_connection(TokioIo::new(SendTimeout::new(stream, SEND_TIMEOUT)), answer);
                let connection = slot.run(stop.run_until_cancelled(connection));
                if let Some(Some(Err(error))) = connection.await {
                    tracing::debug!(%error, "admin connection ended early");
                }
            });
        }
    }
}

impl AdminState {
    fn answer(&self, request: &Request<Incoming>, at: SocketAddr) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        let path = request.uri().path();
        // `/fleet/loads/NAMESPACE/POD` is the part of `/fleet` with one pod's load.
        let pod = path.strip_prefix("/fleet/loads/");
        let request_id = path.strip_prefix("/requests/");
        let is_guarded = pod.is_some()
            || request_id.is_some()
            || matches!(path, "/metrics" | "/fleet" | "/requests");
        if is_guarded && !self.guard.admits(request.headers(), at) {
            return unauthorized();
        }
        match path {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.readiness.check() {
                Ok(()) => text(StatusCode::OK, "ok\n"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/metrics" => {
                let registry = self.registry.lock();
                self.gateway.update_gauges();
                typed(exposition::CONTENT_TYPE, exposition::encode(&registry))
            }
            "/fleet" => typed("application/json", self.gateway.describe()),
            _ if let Some(pod) = pod => match self.gateway.describe_loads(pod) {
                Some(loads) => typed("application/json", loads),
                None => text(StatusCode::NOT_FOUND, format!("no worker is called {pod}\n")),
            },
            "/requests" => {
                described(self.gateway.describe_requests(request.uri().query().unwrap_or_default()))
            }
            _ if let Some(id) = request_id => described(self.gateway.describe_request(id)),
            _ => text(StatusCode::NOT_FOUND, "/livez /readyz /metrics /fleet /requests\n"),
        }
    }
}

fn unauthorized() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// JSON, or the status and the text of an error.
fn described(page: Result<String, (StatusCode, String)>) -> Response<Full<Bytes>> {
    match page {
        Ok(page) => typed("application/json", page),
        Err((status, why)) => text(status, format!("{why}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
