//! [`RequestService`]: the life of a request: route, filters, target, response.

use std::fmt::Write as _;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, LOCATION};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use router_core::fleet::{Fleet, Pool};
use router_core::inner_parts::{InnerParts, OF_AGENTS};
use router_core::provenance::Provenance;
use router_core::route::{self, CorsRequest, Filters, Found, Head, Target};
use router_core::sglang::{Endpoint, headers};
use router_core::timeline::{Timeline, TimelinePart};

use super::connection_info::ConnectionInfo;
use super::early_stream::EarlyStream;
use super::endpoint::{Served, error_format, label, serve};
use super::head;
use super::record::Record;
use super::reject::Reject;
use super::relay::Relay;
use super::response_body::ResponseBody;
use super::routed::{Reply, RouteDeadlines, RoutedRequest};
use super::upgrade::UpgradeRequest;
use crate::gateway::fleet_handle::FleetHandle;
use crate::gateway::shared::Gateway;
use crate::gateway::traces::traceparent::TraceContext;
use crate::http_client::client_body::ClientBody;
use crate::http_client::request_source::RequestSource;
use crate::metrics::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PREFILL: HeaderName = HeaderName::from_static("x-pd-router-prefill");
const DECODE: HeaderName = HeaderName::from_static("x-pd-router-decode");
const CHOICE: HeaderName = HeaderName::from_static("x-pd-router-choice");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-pd-router-attempts");
const TIMELINE: HeaderName = HeaderName::from_static("x-pd-router-timeline");

/// Maximum length of a client's own request id, in bytes: it is logged with every request and sent
/// to every target. A longer one is replaced.
const MAX_REQUEST_ID: usize = 256;

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

    /// Whether a client is a proxy whose forwarding fields are kept.
    pub(crate) fn trusts(&self, client: std::net::IpAddr) -> bool {
        self.0.settings.http.trusts(client)
    }

    /// Answers one request; every failure is an answer too.
    pub(crate) async fn handle(
        &self,
        connection: &ConnectionInfo,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let is_http1 = parts.version < Version::HTTP_2;
        let unread = is_http1.then(|| Arc::clone(connection.unread()));
        let body = RequestSource::Client(body);
        let body = ClientBody::new(body, unread, parts.headers.contains_key(EXPECT));
        let mut record = Record::new(&self.0, request_id(&parts.headers));
        record.trace = self.0.traces.as_ref().map(|_| TraceContext::of(&parts.headers));
        let fleet = self.0.fleet.snapshot();
        let format = error_format(parts.uri.path());
        let is_head = parts.method == Method::HEAD;
        let cors_request = CorsRequest::of(&parts.method, &parts.headers);
        let (reply, filters) =
            self.0.serve(&fleet, connection, parts, body, &cors_request, &mut record).await;
        let failed = reply.is_err();
        let mut response = self.0.answer(reply, &filters, format, record);
        if is_head && failed {
            // The error has no content here, and clients that decode by the type would miss it.
            response.headers_mut().remove(CONTENT_TYPE);
        }
        // Last, so that a backend or another filter cannot lift the policy.
        if let Some(cors) = filters.cors.as_ref().or(self.0.settings.cors.as_ref()) {
            cors.apply(&cors_request, response.headers_mut());
        }
        if is_http1 && connection.unread().closes_connection().await {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Gateway {
    /// The reply, and the filters of the route, which change the response of a failure too.
    async fn serve(
        self: &Arc<Self>,
        fleet: &Fleet,
        connection: &ConnectionInfo,
        mut parts: Parts,
        body: ClientBody,
        cors_request: &CorsRequest,
        record: &mut Record,
    ) -> (Result<Reply, Rejected>, Filters) {
        let found = self.find(fleet, connection, &mut parts);
        if let Some(announced) = cors_request.announced_method() {
            let head = Head { method: announced, ..head::of(&parts) };
            if let Some((route, filters)) = self.preflight(fleet, connection, &found, &head) {
                record.route = route;
                record.endpoint = "preflight";
                return (Ok(no_content()), filters);
            }
        }
        let found = match found {
            Ok(found) => found,
            Err(reject) => return (Err(reject.into()), Filters::default()),
        };
        record.route = Some(Arc::clone(&found.route().name));
        let reply = self.serve_route(&found, parts, body, record).await;
        (reply, found.filters.clone())
    }

    /// The route and the filters that answer a preflight request, if the gateway is to answer it: those of
    /// the rule that the announced request would reach. A rule that gets `OPTIONS` may have a wider policy
    /// than that one, so its filters count only if no rule gets the announced request.
    fn preflight(
        &self,
        fleet: &Fleet,
        connection: &ConnectionInfo,
        found: &Result<Found<'_>, Reject>,
        announced: &Head<'_>,
    ) -> Option<(Option<Arc<str>>, Filters)> {
        if !matches!(found, Ok(_) | Err(Reject::NoRoute)) {
            return None;
        }
        let found = found.as_ref().ok();
        let asked = route::find(fleet, connection.port(), announced, rand::random());
        let governing = asked.as_ref().or(found);
        let has_policy = |found: &&Found<'_>| found.filters.cors.is_some();
        let filters = match governing.filter(has_policy) {
            Some(found) => found.filters.clone(),
            // That of the flag, or none: `found` has a policy, for other requests.
            None if self.settings.cors.is_some()
                || found.is_some_and(|found| has_policy(&found)) =>
            {
                Filters::default()
            }
            None => return None,
        };
        Some((governing.map(|found| Arc::clone(&found.route().name)), filters))
    }

    /// Checks and normalizes the head of a request, and finds its route.
    fn find<'f>(
        &self,
        fleet: &'f Fleet,
        connection: &ConnectionInfo,
        parts: &mut Parts,
    ) -> Result<Found<'f>, Reject> {
        head::normalize(parts, connection, self.settings.http.path_rules())?;
        let head = head::of(parts);
        connection.check(fleet, &head)?;
        route::find(fleet, connection.port(), &head, rand::random()).ok_or(Reject::NoRoute)
    }

    async fn serve_route(
        self: &Arc<Self>,
        found: &Found<'_>,
        parts: Parts,
        mut body: ClientBody,
        record: &mut Record,
    ) -> Result<Reply, Rejected> {
        self.mirror(found, &parts, &mut body, record);
        match found.target {
            Target::Redirect(redirect) => {
                let head = head::of(&parts);
                let location = redirect.location(&head, found.listener, found.prefix);
                Ok(redirected(redirect.status, &location)?)
            }
            Target::Broken { reason } => Err(Reject::BrokenRoute(reason.to_string()))?,
            Target::Service(service) => {
                let request = self.prepare(found, parts, body, record)?;
                Ok(self.proxy(service, request, record).await?)
            }
            Target::Pool(pool) => {
                let request = self.prepare(found, parts, body, record)?;
                self.serve_pool(pool, request, record).await
            }
        }
    }

    pub(super) async fn serve_pool(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        mut request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Rejected> {
        if request.upgrade.as_ref().is_some_and(UpgradeRequest::is_websocket) {
            return Err(Reject::Unsupported("engines serve no WebSocket".to_owned()).into());
        }
        // No engine is asked for another, so no engine may agree to one.
        request.upgrade = None;
        let served = serve(pool.profile, &request.parts.method, request.path.path())?;
        record.endpoint = label(served);
        // What the gateway answers itself, a load balancer may ask every second.
        if matches!(served, Served::Generate(_) | Served::OneWorker | Served::OneEngine) {
            record.pool = Some(pool.name.clone());
        }
        // A route may rewrite the path.
        let format = error_format(request.path.path());
        let reply = match served {
            Served::Generate(endpoint) => self.generate(pool, endpoint, request, record).await,
            Served::OneWorker => self.proxy_to_any(pool, request, record).await,
            Served::Model => self.proxy_to_named(pool, request, record).await,
            Served::OneEngine => self.proxy_to_one(pool, request, record).await,
            Served::Models => Box::pin(self.models(pool, request)).await,
            Served::ServerInfo => Box::pin(self.server_info(pool, request)).await,
            Served::Health => self.health(pool),
            Served::HealthGenerate => Box::pin(self.health_generate(pool, request)).await,
        };
        reply.map_err(|reject| Rejected { reject, format: Some(format) })
    }

    pub(super) fn prepare(
        &self,
        found: &Found<'_>,
        mut parts: Parts,
        body: ClientBody,
        record: &Record,
    ) -> Result<RoutedRequest, Reject> {
        let given = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = PathAndQuery::try_from(found.filters.rewrite(given, found.prefix).as_ref())
            .map_err(|_| Reject::BrokenRoute("the rewritten path is not a path".to_owned()))?;
        let mut headers = std::mem::take(&mut parts.headers);
        found.filters.apply_request(&mut headers);
        let service = matches!(found.target, Target::Service(_));
        // After the filters, so that a route cannot send engine control either.
        match service {
            true => headers::to_backend(&mut headers),
            false => headers::to_engine(&mut headers),
        }
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
        // What the new protocol means for a body depends on the protocol.
        let upgrade = parts.extensions.remove().filter(|_| body.is_end_stream());
        Ok(RoutedRequest { parts, body, headers, path, deadlines, upgrade })
    }

    /// Adds the gateway's own headers, and passes the record to the body that is sent last. `format` is
    /// the endpoint whose error format the client expects.
    fn answer(
        self: &Arc<Self>,
        reply: Result<Reply, Rejected>,
        filters: &Filters,
        format: Endpoint,
        mut record: Record,
    ) -> Response<ResponseBody> {
        let reply = match reply {
            Ok(reply) => reply,
            Err(rejected) => rejected.reply(format, &mut record),
        };
        let mut own = vec![(REQUEST_ID, record.request_id.clone())];
        // An attempt that runs behind an early head may not be the last one.
        if self.settings.explain_headers && !matches!(reply, Reply::Early(_)) {
            explain(&record, &reply, &mut own);
        }
        let mut response = self.begin(reply, record);
        filters.apply_response(response.headers_mut());
        for (name, value) in own {
            response.headers_mut().insert(name, value);
        }
        response
    }

    /// The response of a target, whose body has the record.
    pub(super) fn begin(
        self: &Arc<Self>,
        reply: Reply,
        mut record: Record,
    ) -> Response<ResponseBody> {
        match reply {
            Reply::Whole(response) => {
                record.set_status(response.status());
                record.finish();
                response
            }
            Reply::Proxied(response) => {
                record.set_status(response.status());
                response.map(|body| ResponseBody::streamed(body.recorded(record, Arc::clone(self))))
            }
            Reply::Upgraded(agreed) => {
                let (head, upgrade) = *agreed;
                let mut response = Response::new(ResponseBody::Full(None));
                *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                *response.headers_mut() = head;
                upgrade.begin(Arc::clone(self), record, response.headers_mut());
                response
            }
            Reply::Events { head, events } => {
                record.set_status(http::StatusCode::OK);
                let relay = Relay::new(self, events, record);
                let mut response = Response::new(ResponseBody::streamed(relay));
                *response.headers_mut() = head;
                response
            }
            Reply::Early(waiting) => {
                record.set_status(http::StatusCode::OK);
                let stream = EarlyStream::new(Arc::clone(self), waiting, record);
                let mut response = Response::new(ResponseBody::streamed(stream));
                let event_stream = HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(CONTENT_TYPE, event_stream);
                response
            }
        }
    }
}

/// A reject, and the endpoint whose error format its client expects if the client's own path does
/// not tell it.
pub(crate) struct Rejected {
    reject: Reject,
    format: Option<Endpoint>,
}

impl Rejected {
    /// The reply of a failed request, which is recorded.
    pub(super) fn reply(self, format: Endpoint, record: &mut Record) -> Reply {
        record.fail(self.reject.reason(), self.reject.detail());
        Reply::Whole(self.reject.into_response(self.format.unwrap_or(format)))
    }
}

impl From<Reject> for Rejected {
    fn from(reject: Reject) -> Rejected {
        Rejected { reject, format: None }
    }
}

/// The client's own request id, or a new one.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| id.len() <= MAX_REQUEST_ID);
    given.cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", rand::random::<u128>());
        HeaderValue::try_from(id).expect("hex digits are a header value")
    })
}

fn no_content() -> Reply {
    let mut response = Response::new(ResponseBody::Full(None));
    *response.status_mut() = http::StatusCode::NO_CONTENT;
    Reply::Whole(response)
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

fn explain(record: &Record, reply: &Reply, headers: &mut Vec<(HeaderName, HeaderValue)>) {
    let has_event = matches!(reply, Reply::Events { .. });
    let timeline = record.timeline_at_head(has_event, matches!(reply, Reply::Whole(_)));
    let inner = record.inner_at_head(has_event);
    if let Some(value) = timeline.and_then(|timeline| timeline_header(&timeline, &inner)) {
        headers.push((TIMELINE, value));
    }
    let attempts = record.attempts.lock();
    let workers = &attempts.workers;
    let named = [(PREFILL, &workers.prefill), (DECODE, &workers.worker)];
    for (name, worker) in named {
        if let Some(value) = worker.as_deref().and_then(|w| HeaderValue::from_str(w).ok()) {
            headers.push((name, value));
        }
    }
    if let Some(value) = attempts.explanation.as_ref().and_then(|explanation| explanation.header())
    {
        headers.push((CHOICE, value));
    }
    if attempts.count > 0 {
        headers.push((ATTEMPTS, HeaderValue::from(attempts.count)));
    }
}

/// The parts until now in milliseconds: `name=ms`, `name~ms` if estimated, `name=unknown`. Of those inside the
/// engines only the ones that are known.
fn timeline_header(timeline: &Timeline, inner: &InnerParts) -> Option<HeaderValue> {
    let mut text = String::new();
    let parts = timeline.parts().take(TimelinePart::OF_TTFT);
    let inner = OF_AGENTS.into_iter().zip(inner.of_agents());
    let inner = inner.filter(|(_, ms)| ms.value().is_some());
    for (name, ms) in parts.map(|(part, ms)| (part.as_str(), ms)).chain(inner) {
        let gap = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = match (ms.value(), ms.provenance()) {
            (Some(ms), Provenance::Estimated) => write!(text, "{gap}{name}~{ms:.1}"),
            (Some(ms), _) => write!(text, "{gap}{name}={ms:.1}"),
            (None, _) => write!(text, "{gap}{name}=unknown"),
        };
    }
    HeaderValue::try_from(text).ok()
}
