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
    Lease, Limits, Member, ObjectName, Phase, Pool, ServiceBackend, Verdict, Weight, Worker,
};
use router_core::schedule::{Candidate, Draw, Policy};
use router_core::sglang::headers;

use super::Gateway;
use super::body::BodyError;
use super::fault::Fault;
use super::handle::{Call, Reply};
use super::leg::until;
use super::record::Record;
use super::reject::Reject;
use super::upstream::{NoAnswer, Outgoing, Protocol, innermost, whole};

impl Gateway {
    /// Passes a request to an endpoint of a Service.
    pub(crate) async fn pass(
        &self,
        service: &Arc<ServiceBackend>,
        mut call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        record.endpoint = "service";
        let lease = self.endpoint_of(service)?;
        let protocol = if service.h2c { Protocol::H2c } else { Protocol::Http1 };
        if service.h2c {
            // The request line names the backend there, and a host beside it must not differ.
            call.headers.remove(HOST);
        }
        self.forward(lease, protocol, call, record).await
    }

    /// Passes a request to one worker of a pool, whichever is up.
    pub(crate) async fn pass_to_one(
        &self,
        pool: &Arc<Pool>,
        call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let member = any_up(pool).ok_or_else(|| Reject::NobodyReady(pool.name.clone()))?;
        let lease = lease(&member.worker, &pool.name)?;
        self.forward(lease, Protocol::Http1, call, record).await
    }

    fn endpoint_of(&self, service: &ServiceBackend) -> Result<Lease, Reject> {
        let endpoints = service.endpoints.iter().enumerate();
        let candidates: Vec<Candidate> = endpoints
            .map(|(id, worker)| Candidate { id, usage: worker.usage(), ..Candidate::default() })
            .collect();
        let draw = Draw { chance: rand::random(), turn: 0 };
        let chosen = Policy::PowerOfTwo.pick(&candidates, draw);
        let chosen = chosen.ok_or_else(|| Reject::NobodyReady(service.name.clone()))?;
        lease(&service.endpoints[chosen], &service.name)
    }

    async fn forward(
        &self,
        lease: Lease,
        protocol: Protocol,
        call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let worker = Arc::clone(lease.worker());
        record.worker = Some(Arc::clone(&worker.name));
        record.attempts = 1;
        let deadline = call.timeouts.attempt_deadline();
        let answer = tokio::select! {
            answer = self.exchange(&worker, protocol, call) => answer,
            () = until(deadline) => return Err(Reject::Deadline),
        };
        let answer = answer.map_err(|error| match error {
            NoAnswer::BodyTooLarge => Reject::BodyTooLarge(self.settings.limits.max_body),
            error => Fault { leg: None, worker: Arc::clone(&worker), kind: error.into() }.into(),
        })?;
        let (head, body) = answer.into_parts();
        let mut response =
            Response::new(Passed { body, lease: Some(lease), deadline, record: None });
        *response.status_mut() = head.status;
        *response.headers_mut() = headers::to_client(&head.headers, true);
        Ok(Reply::Passed(Box::new(response)))
    }
}

impl Gateway {
    /// Sends the call on and waits for the answer's head. A body is passed as it comes, so that it
    /// can be sent only once; a call that only reads is sent again where its connection broke, since
    /// one that was kept alive may end at any time.
    async fn exchange(
        &self,
        worker: &Worker,
        protocol: Protocol,
        call: Call,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let limit = self.settings.limits.max_body;
        if call.body.size_hint().lower() > limit as u64 {
            return Err(NoAnswer::BodyTooLarge);
        }
        let again = (call.body.is_end_stream() && call.parts.method.is_safe())
            .then(|| (call.parts.method.clone(), call.path.clone(), call.headers.clone()));
        let send = |method, path, headers, body| {
            let authority = worker.authority.clone();
            self.dispatch.upstream.send_over(protocol, authority, method, path, headers, body)
        };
        let body: Outgoing = Either::Right(Limited::new(call.body, limit));
        match (send(call.parts.method, call.path, call.headers, body).await, again) {
            (Err(NoAnswer::Broken(_)), Some((method, path, headers))) => {
                send(method, path, headers, whole(Bytes::new())).await
            }
            (answer, _) => answer,
        }
    }
}

fn lease(worker: &Arc<Worker>, of: &ObjectName) -> Result<Lease, Reject> {
    let weight = Weight { requests: 1, ..Weight::default() };
    // No limit is set here, so there is always room.
    worker.try_lease(weight, Limits::NONE, None).ok_or_else(|| Reject::NobodyReady(of.clone()))
}

/// A ready member, one that answers probes where there is one.
pub(crate) fn any_up(pool: &Pool) -> Option<&Member> {
    let ready: Vec<&Member> = pool.members.iter().filter(|m| m.phase == Phase::Ready).collect();
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
