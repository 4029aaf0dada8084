//! The life of a request: route, filters, target, answer.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use router_core::fleet::{Fleet, Pool};
use router_core::route::{self, Filters, Found, Head, Target};
use router_core::sglang::{Endpoint, headers};
use tokio::time::Instant;

use super::body::Answer;
use super::endpoint::{Served, label, serve};
use super::record::Record;
use super::reject::Reject;
use super::relay::{Patience, Relay};
use crate::gateway::fleet_handle::FleetHandle;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::source::Source;
use crate::metrics::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PREFILL: HeaderName = HeaderName::from_static("x-pd-router-prefill");
const DECODE: HeaderName = HeaderName::from_static("x-pd-router-decode");
const CHOICE: HeaderName = HeaderName::from_static("x-pd-router-choice");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-pd-router-attempts");

/// What a target answers, before the gateway puts its own headers on.
pub(crate) enum Reply {
    Whole(Response<Answer>),
    /// A backend's answer, passed on as it comes.
    Passed(Box<Response<super::proxy::Passed>>),
    Events {
        head: HeaderMap,
        source: Source,
        patience: Patience,
    },
}

/// A request on its way to its target.
pub(crate) struct Call {
    pub parts: Parts,
    pub body: Incoming,
    /// End to end headers, with the route's changes and without engine control.
    pub headers: HeaderMap,
    /// As the target shall see it.
    pub path: PathAndQuery,
    pub timeouts: Limits,
}

/// The route's limits on time, as moments and durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub deadline: Option<Instant>,
    pub attempt: Option<std::time::Duration>,
}

impl Limits {
    /// When an attempt that begins now must be over.
    pub(crate) fn attempt_deadline(&self) -> Option<Instant> {
        let attempt = self.attempt.map(|limit| Instant::now() + limit);
        [self.deadline, attempt].into_iter().flatten().min()
    }
}

/// Where a connection came in.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    port: u16,
    secure: bool,
    /// The name that a client asked for over TLS.
    name: Option<Arc<str>>,
}

impl Arrival {
    pub(crate) fn plain(port: u16) -> Arrival {
        Arrival { port, secure: false, name: None }
    }

    pub(crate) fn secure(port: u16, name: Option<&str>) -> Arrival {
        Arrival { port, secure: true, name: name.map(Into::into) }
    }

    /// A connection that was made for one listener carries no requests for another (GEP-3567):
    /// its client has checked the one's certificate alone.
    fn check(&self, fleet: &Fleet, head: &Head<'_>) -> Result<(), Reject> {
        if !self.secure {
            return Ok(());
        }
        let asked = route::listener(fleet, self.port, self.name.as_deref());
        let meant = route::listener(fleet, self.port, head.host);
        match (asked, meant) {
            (Some(asked), Some(meant)) if std::ptr::eq(asked, meant) => Ok(()),
            _ => Err(Reject::Misdirected),
        }
    }
}

/// Serves requests; cheap to clone into every connection.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Gateway>);

impl Service {
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn fleet(&self) -> &Arc<FleetHandle> {
        &self.0.fleet
    }

    /// Answers one request, whatever comes.
    pub(crate) async fn handle(
        &self,
        to: &Arrival,
        request: Request<Incoming>,
    ) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let mut record = Record::new(self.0.metrics.clone(), request_id(&parts.headers));
        let fleet = self.0.fleet.snapshot();
        let reply = self.0.serve(&fleet, to, parts, body, &mut record).await;
        self.0.answer(reply, record)
    }
}

impl Gateway {
    async fn serve(
        self: &Arc<Self>,
        fleet: &Fleet,
        to: &Arrival,
        parts: Parts,
        body: Incoming,
        record: &mut Record,
    ) -> Result<(Reply, Filters), Rejected> {
        check_host(&parts)?;
        let head = head_of(&parts);
        to.check(fleet, &head)?;
        let found = route::find(fleet, to.port, &head, rand::random()).ok_or(Reject::NoRoute)?;
        record.route = Some(Arc::clone(&found.route().name));
        let target = match found.target {
            Target::Redirect(redirect) => {
                let location = redirect.location(&head, found.listener, found.prefix);
                return Ok((redirected(redirect.status, &location)?, found.filters.clone()));
            }
            Target::Broken { reason } => Err(Reject::BrokenRoute(reason.to_string()))?,
            target => target,
        };
        let filters = found.filters.clone();
        let call = self.prepare(&found, parts, body, record)?;
        let reply = match target {
            Target::Service(service) => self.pass(service, call, record).await,
            Target::Pool(pool) => {
                return self.serve_pool(pool, call, record).await.map(|r| (r, filters));
            }
            Target::Redirect(_) | Target::Broken { .. } => unreachable!("answered above"),
        };
        Ok((reply?, filters))
    }

    async fn serve_pool(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        call: Call,
        record: &mut Record,
    ) -> Result<Reply, Rejected> {
        let served = serve(pool.profile, &call.parts.method, call.path.path())?;
        record.endpoint = label(served);
        let endpoint = match served {
            Served::Generate(endpoint) => Some(endpoint),
            _ => None,
        };
        let reply = match served {
            Served::Generate(endpoint) => self.generate(pool, endpoint, call, record).await,
            Served::OneWorker => self.pass_to_one(pool, call, record).await,
            Served::Models => self.models(pool, call).await,
            Served::ServerInfo => self.server_info(pool, call).await,
            Served::Health => self.health(pool),
            Served::HealthGenerate => self.health_generate(pool, call).await,
        };
        reply.map_err(|reject| Rejected { reject, endpoint })
    }

    fn prepare(
        &self,
        found: &Found<'_>,
        parts: Parts,
        body: Incoming,
        record: &Record,
    ) -> Result<Call, Reject> {
        let given = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = PathAndQuery::try_from(found.filters.rewrite(given, found.prefix).as_ref())
            .map_err(|_| Reject::BrokenRoute("the rewritten path is no path".to_owned()))?;
        let mut headers = Cow::Borrowed(&parts.headers);
        if !found.filters.request.is_empty() {
            found.filters.apply_request(headers.to_mut());
        }
        let service = matches!(found.target, Target::Service(_));
        // After the filters, so that not even a route sends engine control.
        let mut headers = match service {
            true => headers::to_backend(&headers),
            false => headers::to_engine(&headers),
        };
        headers.insert(REQUEST_ID, record.request_id.clone());
        // A backend sees the host that the client named; HTTP/2 names it in the request line.
        let named = parts.uri.authority().filter(|_| service).map(Authority::as_str);
        let host = found.filters.host.as_deref().or(named);
        if let Some(host) = host.and_then(|host| HeaderValue::from_str(host).ok()) {
            headers.insert(HOST, host);
        }
        let told = found.timeouts();
        let request = told.request.unwrap_or(self.settings.timeouts.request_timeout);
        let timeouts = Limits {
            deadline: (!request.is_zero()).then(|| record.started() + request),
            attempt: told.backend_request.filter(|limit| !limit.is_zero()),
        };
        Ok(Call { parts, body, headers, path, timeouts })
    }

    /// Puts the gateway's own headers on, and hands the record to whatever ends last.
    fn answer(
        self: &Arc<Self>,
        reply: Result<(Reply, Filters), Rejected>,
        mut record: Record,
    ) -> Response<Answer> {
        let (reply, filters) = match reply {
            Ok(reply) => reply,
            Err(Rejected { reject, endpoint }) => {
                record.fails(reject.reason(), reject.detail());
                (Reply::Whole(reject.into_response(endpoint)), Filters::default())
            }
        };
        let id = record.request_id.clone();
        let mut own = HeaderMap::new();
        own.insert(REQUEST_ID, id);
        if self.settings.explain_headers {
            explain(&record, &mut own);
        }
        let mut response = match reply {
            Reply::Whole(response) => {
                record.answers(response.status());
                record.finishes();
                response
            }
            Reply::Passed(response) => {
                record.answers(response.status());
                response.map(|body| Answer::relayed(body.recorded(record)))
            }
            Reply::Events { head, source, patience } => {
                record.answers(http::StatusCode::OK);
                let dispatch = Arc::clone(&self.dispatch);
                let relay = Relay::new(dispatch, source, patience, record);
                let mut response = Response::new(Answer::relayed(relay));
                *response.headers_mut() = head;
                response
            }
        };
        filters.apply_response(response.headers_mut());
        for (name, value) in &own {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }
}

/// A reject, and the endpoint whose clients read it.
pub(crate) struct Rejected {
    reject: Reject,
    endpoint: Option<Endpoint>,
}

impl From<Reject> for Rejected {
    fn from(reject: Reject) -> Rejected {
        Rejected { reject, endpoint: None }
    }
}

/// RFC 9112 section 3.2: routing by a host that others read otherwise is a hole.
fn check_host(parts: &Parts) -> Result<(), Reject> {
    let named = parts.headers.get_all(HOST).iter().count();
    let wanted = usize::from(parts.version == Version::HTTP_11);
    if (wanted..=1).contains(&named) { Ok(()) } else { Err(Reject::BadHost) }
}

fn head_of(parts: &Parts) -> Head<'_> {
    let named = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    Head {
        method: &parts.method,
        // HTTP/2 says it in the request line.
        host: parts.uri.authority().map(|authority| authority.as_str()).or(named),
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
    }
}

/// The client's own request id, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    headers.get(REQUEST_ID).cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", rand::random::<u128>());
        HeaderValue::try_from(id).expect("hex digits are a header value")
    })
}

fn redirected(status: http::StatusCode, location: &str) -> Result<Reply, Reject> {
    let location = HeaderValue::from_str(location)
        .map_err(|_| Reject::BrokenRoute("the redirect's location is no header".to_owned()))?;
    let mut response = Response::new(Answer::Whole(None));
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    Ok(Reply::Whole(response))
}

fn explain(record: &Record, headers: &mut HeaderMap) {
    let named = [(PREFILL, &record.prefill), (DECODE, &record.worker)];
    for (name, worker) in named {
        if let Some(value) = worker.as_deref().and_then(|w| HeaderValue::from_str(w).ok()) {
            headers.insert(name, value);
        }
    }
    if let Some(value) = record.choice.as_ref().and_then(|choice| choice.header()) {
        headers.insert(CHOICE, value);
    }
    if record.attempts > 0 {
        headers.insert(ATTEMPTS, HeaderValue::from(record.attempts));
    }
}
