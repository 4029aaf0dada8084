//! The admin port: `/livez`, `/readyz`, `/metrics`, `/fleet`, `/requests` and `/crashes`, and the page at `/`.

mod bundle;
mod fleet_page;
mod flows;
mod page;
mod requests_page;
pub(crate) mod watch;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::watch::{FleetWatch, WatchBody};
use super::peers;
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
/// Time for those who watch to take the last event, after which their connections are closed.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(1);
const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The state that the admin port serves.
#[derive(Clone)]
pub(crate) struct AdminState {
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) gateway: Arc<Gateway>,
    /// Locked while `/metrics` is answered: the gauges of the workers are cleared and set again.
    pub(crate) registry: Arc<Mutex<Registry>>,
    /// Checks the bearer token of every path but `/livez`, `/readyz` and the files of the page.
    pub(crate) guard: Arc<Guard>,
    /// Sends the fleet to those who watch it.
    pub(crate) watch: Arc<FleetWatch>,
}

/// A whole answer, or a stream of events.
type AdminBody = Either<Full<Bytes>, WatchBody>;

/// The bound admin port.
pub(crate) struct Admin(TcpListener);

impl Admin {
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<Admin> {
        let listener = TcpListener::bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "admin port opened");
        Ok(Admin(listener))
    }

    /// Serves until `stop`. Those who watch get their last event before their connections are closed.
    pub(crate) async fn run(self, state: AdminState, stop: CancellationToken) {
        let (watch, gateway) = (Arc::clone(&state.watch), Arc::clone(&state.gateway));
        let close = CancellationToken::new();
        let _close_at_end = close.clone().drop_guard();
        tokio::select! {
            () = self.serve(state, close) => {}
            () = watch.publish(move || gateway.describe()) => {}
            () = stop.cancelled() => {
                // A client that does not take it in time goes without.
                _ = timeout(LAST_EVENT_TIMEOUT, watch.ended()).await;
            }
        }
    }

    /// Accepts connections, and serves each until `close`. Does not end.
    async fn serve(self, state: AdminState, close: CancellationToken) {
        let slots = ConnectionSlots::new(MAX_CONNECTIONS);
        let connections = TaskTracker::new();
        loop {
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept admin connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            set_options(&stream);
            let Some(slot) = slots.admit().await else { continue };
            // A connection that is gone already has no local address. The guard takes the unspecified
            // address for one that is reachable from outside.
            let at = stream.local_addr().unwrap_or(UNSPECIFIED);
            let (state, close) = (state.clone(), close.clone());
            connections.spawn(async move {
                let answer = service_fn(|request| {
                    slot.used();
                    let answered = match state.crashes(&request, at) {
                        Some(waiting) => Err(waiting),
                        None => Ok(state.answer(&request, at)),
                    };
                    if answered
                        .as_ref()
                        .is_ok_and(|answer| matches!(answer.body(), Either::Right(_)))
                    {
                        slot.streams();
                    }
                    async move {
                        Ok::<_, std::convert::Infallible>(match answered {
                            Ok(answer) => answer,
                            Err(waiting) => waiting.await,
                        })
                    }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                let connection = server
                    .serve_connection(TokioIo::new(SendTimeout::new(stream, SEND_TIMEOUT)), answer);
                let connection = slot.run(close.run_until_cancelled(connection));
                if let Some(Some(Err(error))) = connection.await {
                    tracing::debug!(%error, "admin connection ended early");
                }
            });
        }
    }
}

impl AdminState {
    /// The answer to another gateway, which comes when there is news. `None` if the request is another one
    /// or is not admitted.
    fn crashes(
        &self,
        request: &Request<Incoming>,
        at: SocketAddr,
    ) -> Option<impl Future<Output = Response<AdminBody>> + use<>> {
        let is_asked = request.method() == Method::GET && request.uri().path() == "/crashes";
        if !is_asked || !self.guard.admits(request.headers(), at) {
            return None;
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        let history = Arc::clone(&self.gateway.crashes);
        Some(async move { typed("application/json", peers::answer(&history, &query).await) })
    }

    fn answer(&self, request: &Request<Incoming>, at: SocketAddr) -> Response<AdminBody> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        if let Some(file) = page::file(path) {
            return file.map(Either::Left);
        }
        // `/fleet/loads/NAMESPACE/POD` is the part of `/fleet` with one pod's load.
        let pod = path.strip_prefix("/fleet/loads/");
        let request_id = path.strip_prefix("/requests/");
        let is_guarded = pod.is_some()
            || request_id.is_some()
            || matches!(path, "/metrics" | "/fleet" | "/requests" | "/crashes");
        if is_guarded && !self.guard.admits(request.headers(), at) {
            return unauthorized(&self.guard);
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
                let (kind, page) = exposition::page(&registry, request.headers());
                typed(kind, page)
            }
            "/fleet" if watch::is_asked(query) => self.watch(request),
            "/fleet" => typed("application/json", self.gateway.describe()),
            _ if let Some(pod) = pod => match self.gateway.describe_loads(pod) {
                Some(loads) => typed("application/json", loads),
                None => text(StatusCode::NOT_FOUND, format!("no worker is called {pod}\n")),
            },
            "/requests" => described(self.gateway.describe_requests(query)),
            // Of HEAD, which does not wait.
            "/crashes" => typed("application/json", Bytes::new()),
            _ if let Some(id) = request_id => described(match id.strip_suffix("/bundle") {
                Some(id) => self.gateway.describe_bundle(id),
                None => self.gateway.describe_request(id),
            }),
            _ => {
                text(StatusCode::NOT_FOUND, "/ /livez /readyz /metrics /fleet /requests /crashes\n")
            }
        }
    }

    /// The fleet as events, one a second.
    fn watch(&self, request: &Request<Incoming>) -> Response<AdminBody> {
        if watch::is_cross_site(request.headers()) {
            return text(StatusCode::FORBIDDEN, "a page of another site may not watch\n");
        }
        if request.method() == Method::HEAD {
            return typed(watch::CONTENT_TYPE, Bytes::new());
        }
        match self.watch.subscribe() {
            Ok(events) => with_type(watch::CONTENT_TYPE, Either::Right(events)),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    }
}

fn unauthorized(guard: &Guard) -> Response<AdminBody> {
    let mut response = text(StatusCode::UNAUTHORIZED, guard.refusal());
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// JSON, or the status and the text of an error.
fn described(page: Result<String, (StatusCode, String)>) -> Response<AdminBody> {
    match page {
        Ok(page) => typed("application/json", page),
        Err((status, why)) => text(status, format!("{why}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<AdminBody> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Response<AdminBody> {
    with_type(kind, Either::Left(Full::new(body.into())))
}

/// Texts of clients are in the answers: a browser must not take one for a page, nor keep it.
fn with_type(kind: &'static str, body: AdminBody) -> Response<AdminBody> {
    let mut response = Response::new(body);
    let fields =
        [(CONTENT_TYPE, kind), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (CACHE_CONTROL, "no-store")];
    response
        .headers_mut()
        .extend(fields.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
