//! Plain proxying: a Service behind a route, and engine endpoints that one worker serves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http::header::HOST;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Limited};
use hyper::body::Incoming;
use router_core::fleet::{
    Lease, Member, ObjectName, Phase, Pool, ServiceBackend, Verdict, Weight, Worker, WorkerLimits,
};
use router_core::schedule::{Candidate, Draw, Policy};
use router_core::sglang::headers;

use super::body::BodyError;
use super::handle::{Call, Reply};
use super::record::Record;
use super::reject::Reject;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::fault::Fault;
use crate::gateway::upstream::leg::until;
use crate::http_client::reclaimable::{Reclaim, ReclaimableBody};
use crate::http_client::{Protocol, SendError, innermost, whole};

/// Endpoints that one call is tried on.
const MAX_FORWARDS: u32 = 2;

/// Where a call goes, and where it goes where that one cannot be reached.
type Choose<'a> = &'a (dyn Fn(Option<&Arc<Worker>>) -> Result<Lease, Reject> + Send + Sync);

impl Gateway {
    /// Passes a request to an endpoint of a Service.
    pub(crate) async fn pass(
        &self,
        service: &Arc<ServiceBackend>,
        mut call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        record.endpoint = "service";
        let protocol = if service.h2c { Protocol::H2c } else { Protocol::Http1 };
        if service.h2c {
            // The request line names the backend there, and a host beside it must not differ.
            call.headers.remove(HOST);
        }
        let choose = |avoid: Option<&Arc<Worker>>| endpoint_of(service, avoid);
        self.forward(&choose, protocol, call, record).await
    }

    /// Passes a request to one worker of a pool, whichever is up.
    pub(crate) async fn pass_to_one(
        &self,
        pool: &Arc<Pool>,
        call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let choose = |avoid: Option<&Arc<Worker>>| {
            let member = any_up(pool, avoid).ok_or_else(|| nobody(&pool.name))?;
            lease(&member.worker, &pool.name)
        };
        self.forward(&choose, Protocol::Http1, call, record).await
    }

    /// Sends the call on and passes the answer back as it comes.
    ///
    /// A call of which nothing was sent is tried on another endpoint. One that only reads is sent
    /// again where its connection broke, too: a connection that was kept alive may end at any
    /// time. A body is passed as it comes, so that one that was begun can be sent only once.
    async fn forward(
        &self,
        choose: Choose<'_>,
        protocol: Protocol,
        call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let limit = self.settings.limits.max_body;
        if call.body.size_hint().lower() > limit as u64 {
            return Err(Reject::BodyTooLarge(limit));
        }
        let Call { parts, body, headers, path, timeouts } = call;
        let only_reads = body.is_end_stream() && parts.method.is_safe();
        let mut body = Some(body).filter(|_| !only_reads);
        let mut lease = choose(None)?;
        loop {
            let worker = Arc::clone(lease.worker());
            record.worker = Some(Arc::clone(&worker.name));
            record.attempts += 1;
            let deadline = timeouts.attempt_deadline();
            let (outgoing, owner) = match body.take() {
                None => (whole(Bytes::new()), None),
                Some(body) => {
                    let (lent, owner) = ReclaimableBody::new(body);
                    (Either::Right(Limited::new(lent, limit)), Some(owner))
                }
            };
            let sent = self.dispatch.upstream.send_over(
                protocol,
                worker.authority.clone(),
                parts.method.clone(),
                path.clone(),
                headers.clone(),
                outgoing,
            );
            let error = tokio::select! {
                answer = sent => match answer {
                    Ok(answer) => return Ok(passed(answer, lease, deadline)),
                    Err(SendError::BodyTooLarge) => return Err(Reject::BodyTooLarge(limit)),
                    Err(error) => error,
                },
                () = until(deadline) => return Err(Reject::Deadline),
            };
            body = owner.and_then(Reclaim::returned);
            let sendable = only_reads || (error.is_unsent() && body.is_some());
            let other = || choose(Some(&worker)).ok();
            let again = match sendable && record.attempts < MAX_FORWARDS {
                true if error.is_unsent() => other(),
                true => other().or_else(|| choose(None).ok()),
                false => None,
            };
            let Some(again) = again else {
                return Err(Fault { leg: None, worker, kind: error.into() }.into());
            };
            tracing::debug!(worker = %worker.name, %error, "forwards once more");
            lease = again;
        }
    }
}

fn passed(
    answer: Response<Incoming>,
    lease: Lease,
    deadline: Option<tokio::time::Instant>,
) -> Reply {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Passed { body, lease: Some(lease), deadline, record: None });
    *response.status_mut() = head.status;
    *response.headers_mut() = headers::to_client(&head.headers, true);
    Reply::Passed(Box::new(response))
}

fn endpoint_of(service: &ServiceBackend, avoid: Option<&Arc<Worker>>) -> Result<Lease, Reject> {
    let endpoints = service.endpoints.iter().enumerate();
    let candidates: Vec<Candidate> = endpoints
        .filter(|(_, worker)| !is(worker, avoid))
        .map(|(id, worker)| Candidate { id, usage: worker.usage(), ..Candidate::default() })
        .collect();
    let draw = Draw { chance: rand::random(), turn: 0 };
    let chosen = Policy::PowerOfTwo.pick(&candidates, draw).ok_or_else(|| nobody(&service.name))?;
    lease(&service.endpoints[chosen], &service.name)
}

fn is(worker: &Arc<Worker>, avoid: Option<&Arc<Worker>>) -> bool {
    avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, worker))
}

fn nobody(of: &ObjectName) -> Reject {
    Reject::NobodyReady(of.clone())
}

fn lease(worker: &Arc<Worker>, of: &ObjectName) -> Result<Lease, Reject> {
    let weight = Weight { requests: 1, exchanges: 1, ..Weight::default() };
    // No limit is set here, so there is always room.
    worker.try_lease(weight, WorkerLimits::NONE, None).ok_or_else(|| nobody(of))
}

/// A ready member, one that answers probes where there is one.
fn any_up<'p>(pool: &'p Pool, avoid: Option<&Arc<Worker>>) -> Option<&'p Member> {
    let ready = |m: &&Member| m.phase == Phase::Ready && !is(&m.worker, avoid);
    let ready: Vec<&Member> = pool.members.iter().filter(ready).collect();
    let up = |member: &&&Member| member.worker.health.verdict() == Verdict::Up;
    let start = rand::random_range(0..ready.len().max(1));
    let walk = || ready[start.min(ready.len())..].iter().chain(&ready[..start.min(ready.len())]);
    walk().find(up).or_else(|| walk().next()).copied()
}

/// A backend's body on its way to the client; counts on the worker until it ends.
pub(crate) struct Passed {
    body: Incoming,
    lease: Option<Lease>,
    deadline: Option<tokio::time::Instant>,
    record: Option<Record>,
}

impl Passed {
    /// Ends the story of the request when the body ends.
    pub(crate) fn recorded(self, record: Record) -> Timed {
        let deadline = self.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        Timed { passed: Passed { record: Some(record), ..self }, deadline }
    }
}

/// [`Passed`], cut at the route's deadline.
pub(crate) struct Timed {
    passed: Passed,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Timed {
    fn ends(&mut self, failure: Option<(&'static str, String)>) {
        self.passed.lease = None;
        if let Some(mut record) = self.passed.record.take() {
            if let Some((reason, detail)) = failure {
                record.fails(reason, detail);
            }
            record.finishes();
        }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.ends(Some(("request_timeout", "cut at the route's deadline".to_owned())));
            return Poll::Ready(Some(Err("the request took longer than its route allows".into())));
        }
        match ready!(Pin::new(&mut this.passed.body).poll_frame(cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => {
                this.ends(Some(("engine_broken", innermost(&error))));
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.ends(None);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.passed.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.passed.body.size_hint()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        // hyper does not poll a body whose length is reached, or that has none.
        if self.passed.body.is_end_stream() {
            self.ends(None);
        }
    }
}
