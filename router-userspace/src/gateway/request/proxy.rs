//! Plain proxying: to a Service of a route, and to one worker of a pool.

use std::sync::Arc;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body;
use router_core::fleet::{Lease, Pool, RequestKind, ServiceBackend, Verdict, Worker};
use router_core::sglang::{OneEngineRequest, headers};
use tokio::time::{Instant, interval_at, sleep};

use super::endpoint_choice::{blame_endpoint, endpoint_of, lease_one_of};
use super::forwarded_body::{ForwardedBody, KeptBody};
use super::model::{name_in_path, serving};
use super::proxied_body::ProxiedBody;
use super::record::Record;
use super::reject::Reject;
use super::routed::{Reply, RouteDeadlines, RoutedRequest};
use super::stream_watch::WatchLimits;
use super::upgrade::{AgreedUpgrade, UpgradeRequest};
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::dispatch::{HEALTH_INTERVAL, Silence};
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::leg::until;
use crate::http_client::client_body::BodyHandle;
use crate::http_client::received_body::ReceivedBody;
use crate::http_client::{Protocol, SendError, Sent};

/// Maximum number of endpoints that one request is sent to.
const MAX_ATTEMPTS: u32 = 2;

/// Leases the endpoint of a request, without the one to avoid if there is one.
type Choose<'a> = &'a (dyn Fn(Option<&Arc<Worker>>) -> Result<Lease, Reject> + Send + Sync);

impl Gateway {
    /// Proxies a request to an endpoint of a Service.
    pub(crate) async fn proxy(
        &self,
        service: &Arc<ServiceBackend>,
        mut request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        record.endpoint = "service";
        let protocol = match &service.tls {
            Some(tls) => Protocol::Tls(Arc::clone(tls)),
            None if service.h2c => Protocol::H2c,
            None => Protocol::Http1,
        };
        if matches!(protocol, Protocol::H2c) {
            // HTTP/2 has the host in the request line; a different `Host` header is not allowed.
            request.headers.remove(HOST);
            // HTTP/2 has no upgrades.
            request.upgrade = None;
        }
        if let Some(upgrade) = &request.upgrade {
            upgrade.add_fields(&mut request.headers);
        }
        let now_ms = self.dispatch.clock.now_ms();
        let health = &self.dispatch.health;
        let choose = |avoid: Option<&Arc<Worker>>| endpoint_of(service, avoid, health, now_ms);
        self.forward(&choose, protocol, request, record).await
    }

    /// Waits until a worker of the pool is ready. The time counts as that of a queue.
    async fn until_ready(
        &self,
        pool: &Arc<Pool>,
        deadline: Option<Instant>,
        record: &Record,
    ) -> Result<Arc<Pool>, Reject> {
        record.attempts.lock().wait_for_worker();
        Ok(self.admission.until_ready(pool, deadline).await?)
    }

    /// Proxies a request that names no model to one worker of a pool, one that is up if there is one.
    pub(crate) async fn proxy_to_any(
        &self,
        pool: &Arc<Pool>,
        request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let pool = &self.until_ready(pool, request.deadlines.request, record).await?;
        let choose =
            |avoid: Option<&Arc<Worker>>| lease_one_of(pool, || pool.members.iter(), avoid);
        self.forward(&choose, Protocol::Http1, request, record).await
    }

    /// Proxies `GET /v1/models/NAME` to one worker that serves NAME.
    pub(crate) async fn proxy_to_named(
        &self,
        pool: &Arc<Pool>,
        request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let pool = &self.until_ready(pool, request.deadlines.request, record).await?;
        let path = request.path.clone();
        let model = name_in_path(path.path());
        self.check_model(pool, model.as_deref())?;
        let choose = |avoid: Option<&Arc<Worker>>| {
            lease_one_of(pool, || serving(pool, model.as_deref()), avoid)
        };
        self.forward(&choose, Protocol::Http1, request, record).await
    }

    /// Proxies a request to one worker that serves the model that its body names. The body is read
    /// whole, within `--max-body` and `--max-body-memory`, and sent without engine control.
    pub(crate) async fn proxy_to_one(
        &self,
        pool: &Arc<Pool>,
        request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let RoutedRequest { parts, body, mut headers, path, deadlines, .. } = request;
        let body = self.read_body(&mut headers, body, deadlines.request).await?;
        let small = OneEngineRequest::parse(path.path(), body, &self.settings.allowed_fields)?;
        let pool = &self.until_ready(pool, deadlines.request, record).await?;
        self.check_model(pool, small.model())?;
        let choose = |avoid: Option<&Arc<Worker>>| {
            lease_one_of(pool, || serving(pool, small.model()), avoid)
        };
        let body = ForwardedBody::Whole(small.body().clone());
        let method = parts.method;
        let request = ForwardedRequest { method, headers, path, deadlines, body, upgrade: None };
        Box::pin(self.forward_body(&choose, Protocol::Http1, request, record)).await
    }

    /// The worker has not answered until the request's deadline. It is not to blame if it waits for the
    /// client.
    fn too_late(&self, worker: Arc<Worker>, began: Instant, body: &KeptBody) -> Reject {
        if !body.waits_for_client() {
            let limit = body.waited_until().unwrap_or(began).elapsed();
            let kind = FaultKind::Timeout { waited_for: "its answer", limit };
            self.blame_forwarded(&Fault { leg: None, worker, kind });
        }
        Reject::Deadline
    }

    /// An answer has begun. Errors in a row are counted until an answer is whole: otherwise an endpoint
    /// that breaks every body would never be left.
    fn began_to_answer(&self, worker: &Arc<Worker>) {
        if worker.health.verdict() != Verdict::Up {
            self.dispatch.answered(worker);
        }
    }

    /// A worker has answered a forwarded request whole. A success counts where a failure would.
    pub(super) fn forwarded(&self, worker: &Arc<Worker>, is_success: bool) {
        self.dispatch.answered(worker);
        if is_success && self.dispatch.probes.is_probed(worker) {
            let outcomes = worker.outcomes_of(RequestKind::Forwarded);
            outcomes.succeeded(self.dispatch.clock.now_ms());
        }
    }

    /// Updates the health of a worker that failed a forwarded request.
    pub(super) fn blame_forwarded(&self, fault: &Fault) {
        match self.dispatch.probes.is_probed(&fault.worker) {
            true => self.dispatch.blame(fault, RequestKind::Forwarded),
            false => {
                let change = blame_endpoint(fault, self.dispatch.clock.now_ms());
                self.dispatch.health.observed(&fault.worker, change, fault.detail());
            }
        }
    }

    /// Forwards the request and passes the answer back as it comes.
    async fn forward(
        &self,
        choose: Choose<'_>,
        protocol: Protocol,
        request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let limit = self.settings.limits.max_body;
        if request.body.size_hint().lower() > limit as u64 {
            return Err(Reject::BodyTooLarge(limit));
        }
        let RoutedRequest { parts, body, headers, path, deadlines, upgrade } = request;
        let only_reads = body.is_end_stream() && parts.method.is_safe();
        let body = match only_reads {
            true => ForwardedBody::None,
            false => ForwardedBody::Passed(Box::new(body)),
        };
        let method = parts.method;
        let request = ForwardedRequest { method, headers, path, deadlines, body, upgrade };
        // On the heap, as that of a generation: the future of every request would be as large otherwise.
        Box::pin(self.forward_body(choose, protocol, request, record)).await
    }

    /// Forwards the request and passes the answer back as it comes.
    ///
    /// A request of which nothing was sent is retried on another endpoint, and one that a closed connection
    /// took with it also on the same. A request that only reads is retried as well if its connection broke.
    /// A body that is passed on as it comes can be sent again if it is small, or no part of it was read.
    async fn forward_body(
        &self,
        choose: Choose<'_>,
        protocol: Protocol,
        request: ForwardedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let ForwardedRequest { method, headers, path, deadlines, body, mut upgrade } = request;
        let only_reads = matches!(body, ForwardedBody::None);
        let limits = (self.settings.limits.max_body, self.settings.timeouts.body_timeout);
        let mut body = Some(body);
        let mut lease = choose(None)?;
        loop {
            let worker = Arc::clone(lease.worker());
            let attempt = record.attempts.lock().begin_alone(&worker.name);
            let (began, deadline) = (Instant::now(), deadlines.attempt_deadline());
            let (outgoing, kept) = body.take().unwrap_or(ForwardedBody::None).outgoing(limits);
            let sent = self.http.send(
                protocol.clone(),
                worker.authority.clone(),
                method.clone(),
                path.clone(),
                headers.clone(),
                outgoing,
            );
            let (kind, sent) = match self.head(sent, &worker, deadline, &kept).await {
                Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    match self.upgraded(answer, upgrade.take(), lease, deadline) {
                        Ok(reply) => return Ok(reply),
                        Err(kind) => (kind, Sent::Maybe),
                    }
                }
                Ok(answer) => {
                    self.began_to_answer(&worker);
                    let limits = self.watch_limits(deadline);
                    return Ok(proxied(answer, lease, limits, kept.answered()));
                }
                Err(NoHead::Deadline) => return Err(self.too_late(worker, began, &kept)),
                Err(NoHead::Fault { kind, sent }) => (kind, sent),
            };
            if sent == Sent::Unread {
                kept.dropped().await;
            }
            // Before the worker is blamed: the client may be at fault.
            body = kept.returned()?;
            let fault = Fault { leg: None, worker: Arc::clone(&worker), kind };
            // That of a kept connection is nothing to blame.
            if sent != Sent::Unread {
                self.blame_forwarded(&fault);
            }
            let sendable = only_reads || (sent != Sent::Maybe && body.is_some());
            let other = || choose(Some(&worker)).ok();
            let again = match sent {
                _ if !(sendable && fault.retryable() && attempt < MAX_ATTEMPTS) => None,
                Sent::No => other(),
                Sent::Unread => choose(None).ok(),
                Sent::Maybe => other().or_else(|| choose(None).ok()),
            };
            let Some(again) = again else { return Err(fault.into()) };
            tracing::debug!(worker = %worker.name, reason = %fault.detail(), "retrying");
            lease = again;
        }
    }

    /// Waits for the head of an answer, as long as the worker answers probes. The time in which the worker
    /// waits for the client does not count: `ClientBody` limits it.
    async fn head(
        &self,
        sent: impl Future<Output = Result<Response<ReceivedBody>, SendError>>,
        worker: &Worker,
        deadline: Option<Instant>,
        body: &KeptBody,
    ) -> Result<Response<ReceivedBody>, NoHead> {
        let timeouts = &self.settings.timeouts;
        let limit = timeouts.first_byte_timeout;
        let began = Instant::now();
        let late = sleep(limit);
        tokio::pin!(sent, late);
        let mut health = interval_at(Instant::now() + HEALTH_INTERVAL, HEALTH_INTERVAL);
        let mut silence = Silence::default();
        let kind = loop {
            tokio::select! {
                biased;
                answer = &mut sent => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        let sent = error.sent();
                        return Err(NoHead::Fault { kind: error.into(), sent });
                    }
                },
                _ = health.tick() => {
                    let silent = worker.health.is_silent();
                    if silence.lasts(silent, timeouts.unresponsive_timeout) {
                        break FaultKind::Silent;
                    }
                }
                () = until(deadline) => return Err(NoHead::Deadline),
                () = &mut late => {
                    let end = body.waited_until().unwrap_or(began) + limit;
                    if end <= Instant::now() {
                        break FaultKind::Timeout { waited_for: "its answer", limit };
                    }
                    late.as_mut().reset(end);
                }
            }
        };
        Err(NoHead::Fault { kind, sent: Sent::Maybe })
    }

    /// The reply to a status 101.
    fn upgraded(
        &self,
        mut answer: Response<ReceivedBody>,
        request: Option<UpgradeRequest>,
        lease: Lease,
        deadline: Option<Instant>,
    ) -> Result<Reply, FaultKind> {
        let worker = Arc::clone(lease.worker());
        let limits = self.watch_limits(deadline);
        let head = headers::to_client(answer.headers(), true);
        let agreed =
            request.and_then(|request| AgreedUpgrade::new(request, &mut answer, lease, limits));
        let agreed =
            agreed.ok_or_else(|| FaultKind::Malformed("status 101 without Upgrade".into()))?;
        self.began_to_answer(&worker);
        Ok(Reply::Upgraded(Box::new((head, agreed))))
    }

    /// The limits of an answer on its way to the client.
    pub(super) fn watch_limits(&self, deadline: Option<Instant>) -> WatchLimits {
        let timeouts = &self.settings.timeouts;
        let (idle, unresponsive) = (timeouts.stream_idle_timeout, timeouts.unresponsive_timeout);
        WatchLimits { deadline, idle, unresponsive }
    }
}

/// Why no head of an answer came.
enum NoHead {
    Deadline,
    Fault { kind: FaultKind, sent: Sent },
}

/// A request whose body is forwarded to one endpoint.
struct ForwardedRequest {
    method: Method,
    headers: HeaderMap,
    path: PathAndQuery,
    deadlines: RouteDeadlines,
    body: ForwardedBody,
    upgrade: Option<UpgradeRequest>,
}

fn proxied(
    answer: Response<ReceivedBody>,
    lease: Lease,
    limits: WatchLimits,
    upload: Option<BodyHandle>,
) -> Reply {
    let (head, body) = answer.into_parts();
    let body = ProxiedBody::new(body, lease, limits, upload, head.status.is_success());
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = headers::to_client(&head.headers, true);
    Reply::Proxied(Box::new(response))
}
