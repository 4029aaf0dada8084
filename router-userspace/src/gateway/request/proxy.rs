//! Plain proxying: to a Service of a route, and to one worker of a pool.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::{Either, Limited};
use hyper::body::Incoming;
use router_core::fleet::{
    Lease, Member, ObjectName, Phase, Pool, ServiceBackend, Verdict, Weight, Worker, WorkerLimits,
};
use router_core::schedule::{Candidate, Draw, Policy};
use router_core::sglang::headers;

use super::proxied_body::ProxiedBody;
use super::record::Record;
use super::reject::Reject;
use super::routed::{Reply, RoutedRequest};
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::leg::until;
use crate::http_client::reclaimable::{Reclaim, ReclaimableBody};
use crate::http_client::{Protocol, SendError, whole};

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
        let protocol = if service.h2c { Protocol::H2c } else { Protocol::Http1 };
        if service.h2c {
            // HTTP/2 has the host in the request line; a different `Host` header is not allowed.
            request.headers.remove(HOST);
        }
        let choose = |avoid: Option<&Arc<Worker>>| endpoint_of(service, avoid);
        self.forward(&choose, protocol, request, record).await
    }

    /// Proxies a request to one worker of a pool, one that is up if there is one.
    pub(crate) async fn proxy_to_one(
        &self,
        pool: &Arc<Pool>,
        request: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let choose = |avoid: Option<&Arc<Worker>>| {
            let member = any_up(pool, avoid).ok_or_else(|| none_ready(&pool.name))?;
            lease(&member.worker, &pool.name)
        };
        self.forward(&choose, Protocol::Http1, request, record).await
    }

    /// Forwards the request and passes the answer back as it comes.
    ///
    /// A request of which nothing was sent is retried on another endpoint. A request that only reads
    /// is also retried if its connection broke, since a kept-alive connection may end at any time. A
    /// body is passed on as it comes, so that once it was read it cannot be sent again.
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
        let RoutedRequest { parts, body, headers, path, deadlines } = request;
        let only_reads = body.is_end_stream() && parts.method.is_safe();
        let mut body = Some(body).filter(|_| !only_reads);
        let mut lease = choose(None)?;
        loop {
            let worker = Arc::clone(lease.worker());
            record.worker = Some(Arc::clone(&worker.name));
            record.attempts += 1;
            let deadline = deadlines.attempt_deadline();
            let (outgoing, reclaim) = match body.take() {
                None => (whole(Bytes::new()), None),
                Some(body) => {
                    let (body, reclaim) = ReclaimableBody::new(body);
                    (Either::Right(Limited::new(body, limit)), Some(reclaim))
                }
            };
            let sent = self.http.send(
                protocol,
                worker.authority.clone(),
                parts.method.clone(),
                path.clone(),
                headers.clone(),
                outgoing,
            );
            let error = tokio::select! {
                answer = sent => match answer {
                    // No client's Upgrade field is forwarded.
                    Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                        let kind = FaultKind::Malformed("status 101 without Upgrade".to_owned());
                        return Err(Fault { leg: None, worker, kind }.into());
                    }
                    Ok(answer) => return Ok(proxied(answer, lease, deadline)),
                    Err(SendError::BodyTooLarge) => return Err(Reject::BodyTooLarge(limit)),
                    Err(error) => error,
                },
                () = until(deadline) => return Err(Reject::Deadline),
            };
            body = reclaim.and_then(Reclaim::returned);
            let sendable = only_reads || (error.is_unsent() && body.is_some());
            let other = || choose(Some(&worker)).ok();
            let again = match sendable && record.attempts < MAX_ATTEMPTS {
                true if error.is_unsent() => other(),
                true => other().or_else(|| choose(None).ok()),
                false => None,
            };
            let Some(again) = again else {
                return Err(Fault { leg: None, worker, kind: error.into() }.into());
            };
            tracing::debug!(worker = %worker.name, reason = %error, "retrying");
            lease = again;
        }
    }
}

fn proxied(
    answer: Response<Incoming>,
    lease: Lease,
    deadline: Option<tokio::time::Instant>,
) -> Reply {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(ProxiedBody::new(body, lease, deadline));
    *response.status_mut() = head.status;
    *response.headers_mut() = headers::to_client(&head.headers, true);
    Reply::Proxied(Box::new(response))
}

fn endpoint_of(service: &ServiceBackend, avoid: Option<&Arc<Worker>>) -> Result<Lease, Reject> {
    let endpoints = service.endpoints.iter().enumerate();
    let candidates: Vec<Candidate> = endpoints
        .filter(|(_, worker)| !is(worker, avoid))
        .map(|(id, worker)| Candidate { id, usage: worker.usage(), ..Candidate::default() })
        .collect();
    let draw = Draw { chance: rand::random(), turn: 0 };
    let chosen =
        Policy::PowerOfTwo.pick(&candidates, draw).ok_or_else(|| none_ready(&service.name))?;
    lease(&service.endpoints[chosen], &service.name)
}

fn is(worker: &Arc<Worker>, avoid: Option<&Arc<Worker>>) -> bool {
    avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, worker))
}

fn none_ready(of: &ObjectName) -> Reject {
    Reject::NoWorkerReady(of.clone())
}

fn lease(worker: &Arc<Worker>, of: &ObjectName) -> Result<Lease, Reject> {
    let weight = Weight { requests: 1, exchanges: 1, ..Weight::default() };
    // There is no limit here, so there is always capacity.
    worker.try_lease(weight, WorkerLimits::NONE, None).ok_or_else(|| none_ready(of))
}

/// A ready member, one that answers probes if there is one.
fn any_up<'p>(pool: &'p Pool, avoid: Option<&Arc<Worker>>) -> Option<&'p Member> {
    let ready = |m: &&Member| m.phase == Phase::Ready && !is(&m.worker, avoid);
    let ready: Vec<&Member> = pool.members.iter().filter(ready).collect();
    let up = |member: &&&Member| member.worker.health.verdict() == Verdict::Up;
    let start = rand::random_range(0..ready.len().max(1));
    let walk = || ready[start.min(ready.len())..].iter().chain(&ready[..start.min(ready.len())]);
    walk().find(up).or_else(|| walk().next()).copied()
}
