//! The HTTP side: listeners, keys, scripts, and which path goes where.

pub(crate) mod anthropic;
pub(crate) mod ask;
pub(crate) mod embeddings;
pub(crate) mod generation;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod places;
pub(crate) mod responses;
pub(crate) mod sequence;
pub(crate) mod sim;
pub(crate) mod stream;

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::ledger::Entry;
use crate::life::Life;
use crate::registry;
use crate::script::{Action, millis};
use crate::valve::Socket;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Reply = UnsyncBoxBody<Bytes, BoxError>;

/// Which of an engine's two HTTP servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Api,
    Bootstrap,
}

/// A request with its body, and what it needs to go wrong.
pub(crate) struct Exchange {
    pub(crate) life: Arc<Life>,
    pub(crate) head: Request<()>,
    pub(crate) body: Bytes,
    pub(crate) entry: Entry,
    /// The script action for this request, if any.
    pub(crate) twist: Option<Action>,
    /// Set, this connection ends with a reset.
    pub(crate) cut: Arc<AtomicBool>,
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Reply {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Reply> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let value = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> Response<Reply> {
    respond(status, "text/plain; charset=utf-8", text.into().into())
}

pub(crate) fn reply_json(status: StatusCode, value: &impl Serialize) -> Response<Reply> {
    let body = serde_json::to_vec(value).expect("these values are JSON");
    respond(status, "application/json", body.into())
}

pub(crate) fn empty(status: StatusCode) -> Response<Reply> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn not_found(door: Door) -> Response<Reply> {
    match door {
        Door::Bootstrap => plain(StatusCode::NOT_FOUND, "404: Not Found"),
        Door::Api => reply_json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
    }
}

/// Spawns the tasks of HTTP/2 streams in the engine's life.
#[derive(Clone)]
struct InLife(Arc<Life>);

impl<F> Executor<F> for InLife
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Accepts and serves connections, HTTP/1.1 and HTTP/2 alike, until the life ends.
pub(crate) async fn serve(life: Arc<Life>, door: Door, listener: TcpListener) {
    loop {
        life.valve.passage().await;
        let Ok((stream, _)) = listener.accept().await else { continue };
        let socket = Socket::new(stream, Arc::clone(&life.valve));
        let cut = socket.cut();
        let served = Arc::clone(&life);
        let connection = async move {
            let service = service_fn(|request| {
                exchange(Arc::clone(&served), door, Arc::clone(&cut), request)
            });
            let mut builder = auto::Builder::new(InLife(Arc::clone(&served)));
            builder.http1().timer(TokioTimer::new()).keep_alive(true);
            builder.http2().timer(TokioTimer::new());
            // Clients that leave and scripts that cut are no news.
            let _ = builder.serve_connection(TokioIo::new(socket), service).await;
        };
        life.spawn(connection);
    }
}

async fn exchange(
    life: Arc<Life>,
    door: Door,
    cut: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, BoxError> {
    let _active = life.http.enter();
    let (parts, body) = request.into_parts();
    let head = Request::from_parts(parts, ());
    let body = match Limited::new(body, life.config.body_limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large"));
        }
        Err(error) => return Err(error),
    };
    let path = head.uri().path();
    if door == Door::Api && path.starts_with("/sim/") {
        return Ok(sim::answer(&life, &head, &body));
    }
    if door == Door::Api
        && let Some(refusal) = check_keys(&life, head.headers(), path)
    {
        return Ok(refusal);
    }
    let generates = door == Door::Api && generates(head.method(), path);
    let entry = match door {
        Door::Api => life.ledger.receive(head.method(), head.uri(), head.headers(), &body),
        Door::Bootstrap => Entry::nowhere(&life.ledger),
    };
    let twist = life.core.upgrade().and_then(|core| core.playbook.strike(path, generates, &body));
    if let Some(action) = &twist
        && let Some(result) = strike(&life, action, &cut, &entry).await
    {
        return result;
    }
    if door == Door::Bootstrap {
        return Ok(registry::answer(&life, &head, &body));
    }
    let exchange = Exchange { life, head, body, entry, twist, cut };
    let response =
        if generates { route_generation(&exchange).await } else { route(&exchange).await };
    let response = response.unwrap_or_else(|| not_found(door));
    if !generates {
        exchange.entry.outcome(outcome_of(response.status()));
    }
    if exchange.cut.load(Relaxed) { Err("cut by script".into()) } else { Ok(response) }
}

/// A request's outcome where its status says all.
pub(crate) fn outcome_of(status: StatusCode) -> String {
    if status.is_success() { "ok".into() } else { format!("error {}", status.as_u16()) }
}

/// The actions that need nothing of the request. Returns what ends the exchange.
async fn strike(
    life: &Arc<Life>,
    action: &Action,
    cut: &AtomicBool,
    entry: &Entry,
) -> Option<Result<Response<Reply>, BoxError>> {
    if !matches!(action, Action::Slow { .. }) {
        entry.outcome(action.name());
    }
    let core = life.core.upgrade()?;
    match action {
        Action::DieBeforeHead => life.die(),
        Action::Restart { down_ms, empty_ms } => {
            core.restart_later(life, millis(*down_ms), millis(*empty_ms));
        }
        Action::DropBeforeHead => {
            cut.store(true, Relaxed);
            return Some(Err("cut by script".into()));
        }
        Action::Freeze { ms } => {
            life.valve.close();
            if let Some(ms) = ms {
                tokio::time::sleep(millis(*ms)).await;
                life.valve.open();
            }
            return None;
        }
        Action::FreezeScheduler { ms } => {
            life.freeze_scheduler(true);
            if let Some(ms) = ms {
                let (thawed, time) = (Arc::clone(life), millis(*ms));
                life.spawn(async move {
                    tokio::time::sleep(time).await;
                    thawed.freeze_scheduler(false);
                });
            }
            return None;
        }
        Action::Status { status, body } => {
            let status = StatusCode::from_u16(*status).expect("checked when the script was read");
            let json = body.trim_start().starts_with(['{', '[']);
            let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
            return Some(Ok(respond(status, kind, body.clone().into())));
        }
        Action::HangHead => {}
        _ => return None,
    }
    drop(core);
    pending().await
}

/// The engine's rule for keys: health and metrics are open, administration may need its own.
fn check_keys(life: &Life, headers: &HeaderMap, path: &str) -> Option<Response<Reply>> {
    if path.starts_with("/health") || path.starts_with("/metrics") {
        return None;
    }
    let admin = matches!(path, "/abort_request" | "/flush_cache");
    let config = &life.config;
    let wanted = config.admin_api_key.as_ref().filter(|_| admin).or(config.api_key.as_ref())?;
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(wanted) {
        return None;
    }
    Some(reply_json(StatusCode::UNAUTHORIZED, &json!({"error": "Unauthorized"})))
}

fn generates(method: &Method, path: &str) -> bool {
    match path {
        "/generate" => *method == Method::POST || *method == Method::PUT,
        "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/responses"
        | "/v1/messages"
        | "/v1/embeddings" => *method == Method::POST,
        _ => false,
    }
}

async fn route_generation(exchange: &Exchange) -> Option<Response<Reply>> {
    let old = exchange.life.is_old();
    let path = exchange.head.uri().path();
    if path != "/generate" && !generation::is_json(exchange.head.headers()) {
        return Some(generation::not_json());
    }
    match path {
        "/generate" => Some(generation::answer(exchange, ask::Api::Generate).await),
        "/v1/chat/completions" => Some(generation::answer(exchange, ask::Api::Chat).await),
        "/v1/completions" => Some(generation::answer(exchange, ask::Api::Completion).await),
        "/v1/responses" if !old => Some(generation::answer(exchange, ask::Api::Responses).await),
        "/v1/messages" if !old => Some(generation::answer(exchange, ask::Api::Messages).await),
        "/v1/embeddings" => Some(embeddings::answer(exchange).await),
        _ => None,
    }
}

async fn route(exchange: &Exchange) -> Option<Response<Reply>> {
    let life = &exchange.life;
    let old = life.is_old();
    let (head, body) = (&exchange.head, &exchange.body);
    let get = head.method() == Method::GET;
    let post = head.method() == Method::POST;
    Some(match head.uri().path() {
        "/health" if get && old => empty(StatusCode::OK),
        "/health" | "/health_generate" if get => info::health(life).await,
        "/ready" if get && !old => info::ready(life),
        "/metrics" if get => metrics::answer(life),
        "/server_info" if get && !old => info::server_info(life),
        "/get_server_info" if get => info::server_info(life),
        "/model_info" if get && !old => info::model_info(life),
        "/get_model_info" if get => info::model_info(life),
        "/v1/models" if get => info::models(life),
        "/v1/loads" if get && !old => info::loads(life, head.uri().query()),
        "/get_load" if get && old => info::load_old(life),
        "/tokenize" | "/v1/tokenize" if post && !old => info::tokenize(life, body),
        "/detokenize" | "/v1/detokenize" if post && !old => info::detokenize(body),
        "/flush_cache" if get || post => info::flush_cache(life),
        "/abort_request" if post => info::abort_request(life, body),
        path if get && path.starts_with("/v1/models/") => info::model(life, &path[11..]),
        _ => return None,
    })
}
