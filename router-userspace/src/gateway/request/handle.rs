//! [`RequestService`]: the life of a request: route, filters, target, response.

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

use super::endpoint::{Served, label, serve};
use super::record::Record;
use super::reject::Reject;
use super::relay::Relay;
use super::response_body::ResponseBody;
use super::routed::{Reply, RouteDeadlines, RoutedRequest};
use crate::gateway::fleet_handle::FleetHandle;
use crate::gateway::shared::Gateway;
use crate::metrics::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PREFILL: HeaderName = HeaderName::from_static("x-pd-router-prefill");
const DECODE: HeaderName = HeaderName::from_static("x-pd-router-decode");
const CHOICE: HeaderName = HeaderName::from_static("x-pd-router-choice");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-pd-router-attempts");

/// How a connection came in.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    port: u16,
    secure: bool,
    /// The server name of the client's TLS handshake.
    server_name: Option<Arc<str>>,
}

impl ConnectionInfo {
    pub(crate) fn plain(port: u16) -> ConnectionInfo {
        ConnectionInfo { port, secure: false, server_name: None }
    }

    pub(crate) fn secure(port: u16, server_name: Option<&str>) -> ConnectionInfo {
        ConnectionInfo { port, secure: true, server_name: server_name.map(Into::into) }
    }

    /// Refuses a request for one listener on a connection that was made for another (GEP-3567): the
    /// client has checked only the latter's certificate.
    fn check(&self, fleet: &Fleet, head: &Head<'_>) -> Result<(), Reject> {
        if !self.secure {
            return Ok(());
        }
        let connected = route::listener(fleet, self.port, self.server_name.as_deref());
        let requested = route::listener(fleet, self.port, head.host);
        match (connected, requested) {
            (Some(connected), Some(requested)) if std::ptr::eq(connected, requested) => Ok(()),
            _ => Err(Reject::Misdirected),
        }
    }
}

/// Serves requests; cheap to clone into every connection.
#[derive(Clone)]
pub(crate) struct RequestService(pub(crate) Arc<Gateway>);

impl RequestService {
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn fleet(&self) -> &Arc<FleetHandle> {
        &self.0.fleet
    }

    /// Answers one request; every failure is an answer too.
    pub(crate) async fn handle(
        &self,
        connection: &ConnectionInfo,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let mut record = Record::new(self.0.metrics.clone(), request_id(&parts.headers));
        let fleet = self.0.fleet.snapshot();
        let reply = self.0.serve(&fleet, connection, parts, body, &mut record).await;
        self.0.answer(reply, record)
    }
}

impl Gateway {
    async fn serve(
        self: &Arc<Self>,
        fleet: &Fleet,
        connection: &ConnectionInfo,
        parts: Parts,
        body: Incoming,
        record: &mut Record,
    ) -> Result<(Reply, Filters), Rejected> {
        check_host(&parts)?;
        let head = head_of(&parts);
        connection.check(fleet, &head)?;
        let found =
            route::find(fleet, connection.port, &head, rand::random()).ok_or(Reject::NoRoute)?;
        record.route = Some(Arc::clone(&found.route().name));
        let filters = found.filters.clone();
        let reply = match found.target {
            Target::Redirect(redirect) => {
                let location = redirect.location(&head, found.listener, found.prefix);
                redirected(redirect.status, &location)?
            }
            Target::Broken { reason } => Err(Reject::BrokenRoute(reason.to_string()))?,
            Target::Service(service) => {
                let request = self.prepare(&found, parts, body, record)?;
                self.proxy(service, request, record).await?
            }
            Target::Pool(pool) => {
                let request = self.prepare(&found, parts, body, record)?;
                self.serve_pool(pool, request, record).await?
            }
        };
        Ok((reply, filters))
    }

    async fn serve_pool(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Rejected> {
        let served = serve(pool.profile, &request.parts.method, request.path.path())?;
        record.endpoint = label(served);
        let endpoint = match served {
            Served::Generate(endpoint) => Some(endpoint),
            _ => None,
        };
        let reply = match served {
            Served::Generate(endpoint) => self.generate(pool, endpoint, request, record).await,
            Served::OneWorker => self.proxy_to_one(pool, request, record).await,
            Served::Models => self.models(pool, request).await,
            Served::ServerInfo => self.server_info(pool, request).await,
            Served::Health => self.health(pool),
            Served::HealthGenerate => self.health_generate(pool, request).await,
        };
        reply.map_err(|reject| Rejected { reject, endpoint })
    }

    fn prepare(
        &self,
        found: &Found<'_>,
        parts: Parts,
        body: Incoming,
        record: &Record,
    ) -> Result<RoutedRequest, Reject> {
        let given = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = PathAndQuery::try_from(found.filters.rewrite(given, found.prefix).as_ref())
            .map_err(|_| Reject::BrokenRoute("the rewritten path is not a path".to_owned()))?;
        let mut headers = Cow::Borrowed(&parts.headers);
        if !found.filters.request.is_empty() {
            found.filters.apply_request(headers.to_mut());
        }
        let service = matches!(found.target, Target::Service(_));
        // After the filters, so that a route cannot send engine control either.
        let mut headers = match service {
            true => headers::to_backend(&headers),
            false => headers::to_engine(&headers),
        };
        headers.insert(REQUEST_ID, record.request_id.clone());
        // A backend gets the host that the client named, which HTTP/2 has in the request line.
        let named = parts.uri.authority().filter(|_| service).map(Authority::as_str);
        let host = found.filters.host.as_deref().or(named);
        if let Some(host) = host.and_then(|host| HeaderValue::from_str(host).ok()) {
            headers.insert(HOST, host);
        }
        let timeouts = found.timeouts();
        let request = timeouts.request.unwrap_or(self.settings.timeouts.request_timeout);
        let deadlines = RouteDeadlines {
            request: (!request.is_zero()).then(|| record.started() + request),
            attempt: timeouts.backend_request.filter(|limit| !limit.is_zero()),
        };
        Ok(RoutedRequest { parts, body, headers, path, deadlines })
    }

    /// Adds the gateway's own headers, and passes the record to the body that is sent last.
    fn answer(
        self: &Arc<Self>,
        reply: Result<(Reply, Filters), Rejected>,
        mut record: Record,
    ) -> Response<ResponseBody> {
        let (reply, filters) = match reply {
            Ok(reply) => reply,
            Err(Rejected { reject, endpoint }) => {
                record.fail(reject.reason(), reject.detail());
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
                record.set_status(response.status());
                record.finish();
                response
            }
            Reply::Proxied(response) => {
                record.set_status(response.status());
                response.map(|body| ResponseBody::streamed(body.recorded(record)))
            }
            Reply::Events { head, source, limits, observation } => {
                record.set_status(http::StatusCode::OK);
                let dispatch = Arc::clone(&self.dispatch);
                let relay = Relay::new(dispatch, source, limits, observation, record);
                let mut response = Response::new(ResponseBody::streamed(relay));
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

/// A reject, and the endpoint whose error format its client expects.
pub(crate) struct Rejected {
    reject: Reject,
    endpoint: Option<Endpoint>,
}

impl From<Reject> for Rejected {
    fn from(reject: Reject) -> Rejected {
        Rejected { reject, endpoint: None }
    }
}

/// Exactly one `Host` (RFC 9112 section 3.2): with two, a proxy before the gateway may route by one
/// and the gateway by the other.
fn check_host(parts: &Parts) -> Result<(), Reject> {
    let named = parts.headers.get_all(HOST).iter().count();
    let wanted = usize::from(parts.version == Version::HTTP_11);
    if (wanted..=1).contains(&named) { Ok(()) } else { Err(Reject::BadHost) }
}

fn head_of(parts: &Parts) -> Head<'_> {
    let named = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    Head {
        method: &parts.method,
        // HTTP/2 has the host in the request line.
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
    let location = HeaderValue::from_str(location).map_err(|_| {
        Reject::BrokenRoute("the redirect's location is not a header value".to_owned())
    })?;
    let mut response = Response::new(ResponseBody::Full(None));
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
    if let Some(value) = record.explanation.as_ref().and_then(|explanation| explanation.header()) {
        headers.insert(CHOICE, value);
    }
    if record.attempts > 0 {
        headers.insert(ATTEMPTS, HeaderValue::from(record.attempts));
    }
}
