//! The HTTP servers: listeners, API keys, scripts and routing.

pub(crate) mod anthropic;
pub(crate) mod embeddings;
pub(crate) mod generation;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod parse;
pub(crate) mod rendezvous;
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

use crate::process::Process;
use crate::recorder::RequestRecord;
use crate::registry;
use crate::script::{Action, millis};
use crate::socket::EngineSocket;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Reply = UnsyncBoxBody<Bytes, BoxError>;

/// The two HTTP servers of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpServer {
    Api,
    Bootstrap,
}

/// One request with its body and its injected failure.
pub(crate) struct Exchange {
    pub(crate) process: Arc<Process>,
    pub(crate) head: Request<()>,
    pub(crate) body: Bytes,
    pub(crate) record: RequestRecord,
    /// The action of the script that applies to this request.
    pub(crate) action: Option<Action>,
    /// When set, this connection ends with a reset.
    pub(crate) reset: Arc<AtomicBool>,
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

fn not_found(server: HttpServer) -> Response<Reply> {
    match server {
        HttpServer::Bootstrap => plain(StatusCode::NOT_FOUND, "404: Not Found"),
        HttpServer::Api => reply_json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
    }
}

/// Spawns the tasks of HTTP/2 streams in the engine process.
#[derive(Clone)]
struct ProcessExecutor(Arc<Process>);

impl<F> Executor<F> for ProcessExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Accepts and serves HTTP/1.1 and HTTP/2 connections until the process ends.
pub(crate) async fn serve(process: Arc<Process>, server: HttpServer, listener: TcpListener) {
    loop {
        process.sockets.wait_until_thawed().await;
        let Ok((stream, _)) = listener.accept().await else { continue };
        let socket = EngineSocket::new(stream, Arc::clone(&process.sockets));
        let reset = socket.reset();
        let served = Arc::clone(&process);
        let connection = async move {
            let service = service_fn(|request| {
                exchange(Arc::clone(&served), server, Arc::clone(&reset), request)
            });
            let mut builder = auto::Builder::new(ProcessExecutor(Arc::clone(&served)));
            builder.http1().timer(TokioTimer::new()).keep_alive(true);
            builder.http2().timer(TokioTimer::new());
            // Errors are disconnects and scripted resets.
            let _ = builder.serve_connection(TokioIo::new(socket), service).await;
        };
        process.spawn(connection);
    }
}

async fn exchange(
    process: Arc<Process>,
    server: HttpServer,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, BoxError> {
    let _active = process.http.enter();
    let (parts, body) = request.into_parts();
    let head = Request::from_parts(parts, ());
    let body = match Limited::new(body, process.config.body_limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large"));
        }
        Err(error) => return Err(error),
    };
    let path = head.uri().path();
    if server == HttpServer::Api && path.starts_with("/sim/") {
        return Ok(sim::answer(&process, &head, &body));
    }
    if server == HttpServer::Api
        && let Some(rejection) = check_keys(&process, head.headers(), path)
    {
        return Ok(rejection);
    }
    let generates = server == HttpServer::Api && generates(head.method(), path);
    let record = match server {
        HttpServer::Api => {
            process.recorder.receive(head.method(), head.uri(), head.headers(), &body)
        }
        HttpServer::Bootstrap => RequestRecord::unrecorded(&process.recorder),
    };
    let action = process
        .supervisor
        .upgrade()
        .and_then(|supervisor| supervisor.scripts.next_action(path, generates, &body));
    if let Some(action) = &action
        && let Some(result) = apply_action(&process, action, &reset, &record).await
    {
        return result;
    }
    if server == HttpServer::Bootstrap {
        return Ok(registry::answer(&process, &head, &body));
    }
    let exchange = Exchange { process, head, body, record, action, reset };
    let response =
        if generates { route_generation(&exchange).await } else { route(&exchange).await };
    let response = response.unwrap_or_else(|| not_found(server));
    if !generates {
        exchange.record.outcome(outcome_of(response.status()));
    }
    if exchange.reset.load(Relaxed) { Err("reset by script".into()) } else { Ok(response) }
}

/// The outcome of a request that is fully described by its status.
pub(crate) fn outcome_of(status: StatusCode) -> String {
    if status.is_success() { "ok".into() } else { format!("error {}", status.as_u16()) }
}

/// Applies the actions that do not depend on the request. Returns the result that ends the
/// exchange.
async fn apply_action(
    process: &Arc<Process>,
    action: &Action,
    reset: &AtomicBool,
    record: &RequestRecord,
) -> Option<Result<Response<Reply>, BoxError>> {
    if !matches!(action, Action::Slow { .. }) {
        record.outcome(action.name());
    }
    let supervisor = process.supervisor.upgrade()?;
    match action {
        Action::DieBeforeHead => process.kill(),
        Action::Restart { down_ms, registry_delay_ms } => {
            supervisor.restart_later(process, millis(*down_ms), millis(*registry_delay_ms));
        }
        Action::DropBeforeHead => {
            reset.store(true, Relaxed);
            return Some(Err("reset by script".into()));
        }
        Action::Freeze { ms } => {
            process.sockets.freeze();
            if let Some(ms) = ms {
                tokio::time::sleep(millis(*ms)).await;
                process.sockets.thaw();
            }
            return None;
        }
        Action::FreezeScheduler { ms } => {
            process.freeze_scheduler(true);
            if let Some(ms) = ms {
                let (thawed, time) = (Arc::clone(process), millis(*ms));
                process.spawn(async move {
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
    drop(supervisor);
    pending().await
}

/// Checks the API key: health and metrics need none, administration may need its own.
fn check_keys(process: &Process, headers: &HeaderMap, path: &str) -> Option<Response<Reply>> {
    if path.starts_with("/health") || path.starts_with("/metrics") {
        return None;
    }
    let admin = matches!(path, "/abort_request" | "/flush_cache" | "/pd_role_switch");
    let config = &process.config;
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
    let old = exchange.process.is_0_4();
    let path = exchange.head.uri().path();
    if path != "/generate" && !generation::is_json(exchange.head.headers()) {
        return Some(generation::not_json());
    }
    match path {
        "/generate" => Some(generation::answer(exchange, parse::Api::Generate).await),
        "/v1/chat/completions" => Some(generation::answer(exchange, parse::Api::Chat).await),
        "/v1/completions" => Some(generation::answer(exchange, parse::Api::Completion).await),
        "/v1/responses" if !old => Some(generation::answer(exchange, parse::Api::Responses).await),
        "/v1/messages" if !old => Some(generation::answer(exchange, parse::Api::Messages).await),
        "/v1/embeddings" => Some(embeddings::answer(exchange).await),
        _ => None,
    }
}

async fn route(exchange: &Exchange) -> Option<Response<Reply>> {
    let process = &exchange.process;
    let old = process.is_0_4();
    let (head, body) = (&exchange.head, &exchange.body);
    let get = head.method() == Method::GET;
    let post = head.method() == Method::POST;
    Some(match head.uri().path() {
        "/health" if get && old => empty(StatusCode::OK),
        "/health" | "/health_generate" if get => info::health(process).await,
        "/ready" if get && !old => info::ready(process),
        "/metrics" if get => metrics::answer(process),
        "/server_info" if get && !old => info::server_info(process),
        "/get_server_info" if get => info::server_info(process),
        "/model_info" if get && !old => info::model_info(process),
        "/get_model_info" if get => info::model_info(process),
        "/v1/models" if get => info::models(process),
        "/v1/loads" if get && !old => info::loads(process, head.uri().query()),
        "/get_load" if get && old => info::load_0_4(process),
        "/tokenize" | "/v1/tokenize" if post && !old => info::tokenize(process, body),
        "/detokenize" | "/v1/detokenize" if post && !old => info::detokenize(body),
        "/v1/messages/count_tokens" if post && !old => anthropic::count_tokens(body),
        "/flush_cache" if get || post => info::flush_cache(process),
        "/abort_request" if post => info::abort_request(process, body),
        "/pd_role_switch" if post && !old => info::switch_role(process, body),
        path if get && path.starts_with("/v1/models/") => info::model(process, &path[11..]),
        _ => return None,
    })
}
