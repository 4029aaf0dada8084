//! [`Dispatch`]: sends the requests of one attempt to the engines, and waits for the first leg that
//! answers or fails.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Response};
use router_core::fleet::{GhostWeight, Lease, RankAssignment, RequestKind, Worker};
use router_core::pair::{Leg, Pair};
use router_core::sglang::{
    Attempt, BootstrapAddress, Endpoint, Request, Rid, Room, SplicedBody, fault as engine,
    ranks_by_field,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, interval_at, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::abort::{AbortGuard, Aborter};
use super::fault::{Fault, FaultKind};
use super::first_event::{ResponseStart, read_start};
use super::in_flight::{InFlight, PrefillLeg};
use super::leg;
use super::sent_mark::{LegBody, SentMark};
use crate::clock::MonotonicClock;
use crate::config::TimeoutFlags;
use crate::gateway::engine_client::EngineClient;
use crate::gateway::placement::observe::Prediction;
use crate::gateway::timeline::attempt_marks::AttemptMarks;
use crate::gateway::workers::health_monitor::HealthMonitor;
use crate::gateway::workers::probe::Probes;
use crate::http_client::Protocol;
use crate::http_client::received_body::ReceivedBody;
use crate::http_client::response::{ReadLimits, read_body};
use crate::metrics::{LegLabels, Metrics};
use crate::rooms::RoomRegistry;

/// Interval at which a waiting attempt checks whether its workers still answer probes.
pub(crate) const HEALTH_INTERVAL: Duration = Duration::from_millis(250);
/// Time to wait for the other leg's error when one leg's error is about the transfer.
const CAUSE_WAIT: Duration = Duration::from_millis(100);

/// The request that every attempt sends.
pub(crate) struct AttemptRequest {
    pub request: Request,
    /// The protocol of the pool's engines.
    pub protocol: Protocol,
    pub path: PathAndQuery,
    /// End-to-end headers, without engine control.
    pub headers: Arc<HeaderMap>,
    pub deadline: Option<Instant>,
    /// The moments of the attempt.
    pub marks: Option<Arc<AttemptMarks>>,
}

/// A leased pair, and the bootstrap address at which it meets.
#[derive(Clone)]
pub(crate) struct PairContext {
    pub leases: Pair<Arc<Lease>>,
    pub bootstrap: BootstrapAddress,
    /// Compared with the time that prefill takes.
    pub prediction: Option<Prediction>,
    pub ranks: Pair<Option<RankAssignment>>,
    /// What the workers keep of a request that they fail.
    pub ghosts: Arc<Pair<GhostWeight>>,
}

/// Why an attempt got no answer.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// One leg failed.
    Fault(Fault),
    /// The attempt's deadline has passed.
    Deadline,
    /// The gateway is shutting down, and the drain timeout is exceeded.
    Draining,
}

impl From<Fault> for AttemptError {
    fn from(fault: Fault) -> AttemptError {
        AttemptError::Fault(fault)
    }
}

/// An attempt whose answer has begun.
pub(crate) struct StartedAttempt {
    pub response: ResponseStart,
    /// Prefill's whole answer, if the client's answer is merged from both.
    pub prefill_answer: Option<Bytes>,
    pub in_flight: InFlight,
}

/// Sends requests to engines; shared by all requests.
pub(crate) struct Dispatch {
    pub engines: EngineClient,
    pub aborter: Arc<Aborter>,
    pub probes: Arc<Probes>,
    pub health: Arc<HealthMonitor>,
    pub tasks: TaskTracker,
    pub timeouts: TimeoutFlags,
    /// Limits on an answer that is read whole.
    pub response_limits: ReadLimits,
    pub clock: MonotonicClock,
    /// Where agents' reports find the attempts.
    pub rooms: RoomRegistry,
    pub metrics: Metrics,
    /// Cancelled when the drain timeout is exceeded: running requests end with an error.
    pub drain_exceeded: CancellationToken,
}

impl Dispatch {
    /// Sends one sample to both engines of a pair, with its own bootstrap rooms and request ids, and
    /// waits until decode's answer begins. Dropping the future cancels and aborts both legs.
    ///
    /// The pair is taken by value: prefill's lease and its place in the prefill queue end when prefill
    /// has answered, while decode may need minutes more for an answer that is not streamed.
    ///
    /// # Errors
    /// The first leg failed (the other one is cancelled and aborted by then), the deadline passed, or
    /// the drain timeout is exceeded.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        attempt: &AttemptRequest,
        pair: PairContext,
    ) -> Result<StartedAttempt, AttemptError> {
        let count = attempt.request.rooms();
        let room = |_| Room::steered(rand::random(), &pair.ranks);
        let rooms: Vec<Room> = (0..count).map(room).collect();
        if let Some(marks) = &attempt.marks {
            marks.follow_rooms(&rooms, &self.rooms, self.clock);
        }
        let rids: Vec<Rid> = (0..count).map(|_| Rid::from_random(rand::random())).collect();
        let bodies = attempt.request.inject(&Attempt {
            bootstrap: &pair.bootstrap,
            rooms: &rooms,
            rids: &rids,
            dp: ranks_by_field(&pair.ranks),
        });
        let abort_rids: Vec<String> =
            rids.iter().filter_map(|rid| attempt.request.endpoint().abort_rid(rid)).collect();
        let PairContext { leases, prediction, ghosts, .. } = pair;
        let sent = SentMark::new(attempt.marks.clone());
        let body = sent.body(bodies.decode);
        let rids = abort_rids.clone();
        let guard = AbortGuard::new(&self.aborter, leases.decode.worker(), rids, sent);
        let context = (leases.prefill, prediction, Arc::clone(&ghosts));
        let prefill = self.send_prefill(attempt, context, bodies.prefill, abort_rids);
        let in_flight = InFlight::new(prefill, guard, leases.decode, ghosts);
        self.race(attempt, body, in_flight).await
    }

    /// Sends a request to one engine that serves alone.
    pub(crate) async fn begin_alone(
        self: &Arc<Self>,
        attempt: &AttemptRequest,
        lease: Arc<Lease>,
    ) -> Result<StartedAttempt, AttemptError> {
        let count = attempt.request.rooms();
        let rids: Vec<Rid> = (0..count).map(|_| Rid::from_random(rand::random())).collect();
        // An engine that samples n times itself gives the copies ids of its own.
        let endpoint = attempt.request.endpoint();
        let abort_rids = match attempt.request.samples() {
            1 => rids.iter().filter_map(|rid| endpoint.abort_rid(rid)).collect(),
            _ => Vec::new(),
        };
        let sent = SentMark::new(attempt.marks.clone());
        let body = sent.body(attempt.request.plain(&rids));
        let guard = AbortGuard::new(&self.aborter, lease.worker(), abort_rids, sent);
        self.race(attempt, body, InFlight::alone(guard, lease)).await
    }

    /// Waits for the start of decode's response, or for anything that ends the attempt before.
    async fn race(
        self: &Arc<Self>,
        attempt: &AttemptRequest,
        body: LegBody,
        mut in_flight: InFlight,
    ) -> Result<StartedAttempt, AttemptError> {
        let worker = Arc::clone(in_flight.worker());
        let leg = in_flight.leg();
        let mut response_start = pin!(self.response_start(attempt, leg, &worker, body));
        let mut health = interval_at(Instant::now() + HEALTH_INTERVAL, HEALTH_INTERVAL);
        let merges = attempt.request.wants_logprob_merge();
        let (mut prefill, mut started) = (None, None);
        let mut silence = Silence::default();
        let fault = loop {
            tokio::select! {
                // An answer that has begun takes precedence over a failure at the same time.
                biased;
                answer = &mut response_start, if started.is_none() => match answer {
                    Ok(answer) => {
                        in_flight.decode_answered();
                        self.generated(&worker);
                        if !merges || !in_flight.awaits_prefill() {
                            return Ok(StartedAttempt { response: answer, prefill_answer: prefill, in_flight });
                        }
                        started = Some(answer);
                    }
                    Err(fault) => break fault,
                },
                answer = in_flight.prefill_answer(), if in_flight.awaits_prefill() => match answer {
                    Ok(answer) => {
                        prefill = Some(answer).filter(|_| merges);
                        if let Some(started) = started.take() {
                            return Ok(StartedAttempt { response: started, prefill_answer: prefill, in_flight });
                        }
                    }
                    Err(fault) => break fault,
                },
                _ = health.tick() => {
                    if self.drain_exceeded.is_cancelled() {
                        return Err(AttemptError::Draining);
                    }
                    let fault = in_flight.silent_worker();
                    let lasts = silence.lasts(fault.is_some(), self.timeouts.unresponsive_timeout);
                    if let Some(fault) = fault.filter(|_| lasts) {
                        break fault;
                    }
                }
                () = leg::until(attempt.deadline) => return Err(AttemptError::Deadline),
            }
        };
        let fault = match started {
            None if fault.is_timeout() => in_flight.blame_timeout(fault),
            None => cause(fault, &mut in_flight, &mut response_start).await,
            // Decode has answered without an error.
            Some(_) => fault,
        };
        // Which leg a timeout is to be blamed on is known only now. Others are counted where they are found.
        let was_unclear = fault.is_silent() || (fault.is_timeout() && started.is_none());
        self.failed(&fault, was_unclear, &mut in_flight);
        Err(AttemptError::Fault(fault))
    }

    /// Charges the worker that an attempt failed at, or both if their transfer failed.
    fn failed(&self, fault: &Fault, was_unclear: bool, in_flight: &mut InFlight) {
        if was_unclear {
            self.count(fault.leg, &fault.worker, Some(fault));
        }
        in_flight.failed(fault);
        self.blame(fault, RequestKind::Generation);
        if let Some(pair) = in_flight.pair().filter(|_| fault.is_failed_transfer()) {
            self.health.transfer_failed(&pair);
            for (leg, worker) in [(Leg::Prefill, pair.prefill), (Leg::Decode, pair.decode)] {
                self.keep_ghost(worker, in_flight.ghost(Some(leg)));
            }
        }
        // The task of the prefill leg has left the ghost of any other fault of prefill.
        if was_unclear || fault.leg != Some(Leg::Prefill) {
            self.leave_ghost(fault, in_flight.ghost(fault.leg));
        }
    }

    /// Updates the health of the one worker that failed, and probes it if it may be down.
    pub(crate) fn blame(&self, fault: &Fault, kind: RequestKind) {
        let change = fault.charge(self.clock.now_ms());
        if change.is_some() {
            self.health.observed(&fault.worker, change, fault.detail());
        }
        if fault.is_failure() {
            self.health.failed(&fault.worker, kind);
        } else if fault.is_refusal() {
            self.health.refused(&fault.worker);
        }
        if fault.wants_probe() {
            self.probes.probe_now(&fault.worker);
        }
    }

    /// Lets the worker look busy for as long as it would have been with the request that it did not serve.
    fn leave_ghost(&self, fault: &Fault, ghost: &GhostWeight) {
        if fault.is_failure() || fault.is_refusal() || fault.is_full() {
            self.keep_ghost(&fault.worker, ghost);
        }
    }

    fn keep_ghost(&self, worker: &Arc<Worker>, ghost: &GhostWeight) {
        if let Some(weight) = ghost.take() {
            self.health.leave_ghost(worker, weight);
        }
    }

    /// Records that a worker answered a leg with generated output.
    fn generated(&self, worker: &Arc<Worker>) {
        self.answered(worker);
        worker.outcomes.succeeded(self.clock.now_ms());
        worker.count_answer();
    }

    /// Records that a worker answered a request.
    pub(crate) fn answered(&self, worker: &Arc<Worker>) {
        let change = worker.health.answered();
        self.health.observed(worker, change, "it answered a request");
    }

    async fn response_start(
        self: &Arc<Self>,
        attempt: &AttemptRequest,
        leg: Option<Leg>,
        worker: &Arc<Worker>,
        body: LegBody,
    ) -> Result<ResponseStart, Fault> {
        let TimeoutFlags { first_event_timeout, first_byte_timeout, .. } = self.timeouts;
        // The limit of a stream includes its first event, that of any other answer only the head.
        let (waited_for, limit) = match attempt.request.stream() {
            true => ("the first event of its answer", first_event_timeout),
            false => ("its answer", first_byte_timeout),
        };
        let until = Instant::now() + limit;
        let fault = |kind| Fault { leg, worker: Arc::clone(worker), kind };
        let late = |_| Err(fault(FaultKind::Timeout { waited_for, limit }));
        let head = timeout_at(until, self.head(attempt, leg, worker, body)).await;
        let started = match head.unwrap_or_else(late) {
            Err(fault) => Err(fault),
            Ok(response) => {
                let until = attempt.request.stream().then_some(until);
                tokio::select! {
                    biased;
                    started = read_start(response, &attempt.request, &self.response_limits) => {
                        started.map_err(fault)
                    }
                    () = leg::until(until) => Err(fault(FaultKind::Timeout { waited_for, limit })),
                }
            }
        };
        let fault = started.as_ref().err();
        // A timeout is counted once it is known which leg is to blame.
        if !fault.is_some_and(Fault::is_timeout) {
            self.count(leg, worker, fault);
        }
        started
    }

    /// Sends one body and returns the answer. A status that is not a success is a fault.
    async fn head(
        &self,
        attempt: &AttemptRequest,
        leg: Option<Leg>,
        worker: &Arc<Worker>,
        body: LegBody,
    ) -> Result<Response<ReceivedBody>, Fault> {
        let request = body.request(&attempt.protocol, &attempt.path, &attempt.headers);
        let sent = self.engines.send(worker, request).await;
        let fault = |kind| Fault { leg, worker: Arc::clone(worker), kind };
        let response = sent.map_err(|error| fault(error.into()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let idle = self.timeouts.stream_idle_timeout;
        Err(fault(leg::refusal(attempt.request.endpoint(), response, idle).await))
    }

    /// Sends the prefill leg from its own task, which reads the whole answer and keeps the lease until
    /// then.
    fn send_prefill(
        self: &Arc<Self>,
        attempt: &AttemptRequest,
        (lease, prediction, ghosts): (Arc<Lease>, Option<Prediction>, Arc<Pair<GhostWeight>>),
        body: SplicedBody,
        abort_rids: Vec<String>,
    ) -> PrefillLeg {
        let (outcome_tx, outcome) = oneshot::channel();
        let sent = SentMark::new(attempt.marks.clone());
        let body = sent.body(body);
        let guard = AbortGuard::new(&self.aborter, lease.worker(), abort_rids, sent);
        let worker = Arc::clone(lease.worker());
        let dispatch = Arc::clone(self);
        let request = attempt.for_prefill();
        let decode_answered = Arc::new(AtomicBool::new(false));
        let is_own_timeout = Arc::clone(&decode_answered);
        let task = self.tasks.spawn(async move {
            let began = Instant::now();
            let answer = dispatch.prefill(request, lease.worker(), body).await;
            let fault = answer.as_ref().err();
            // While decode has not answered, a timeout may be decode's: `race` counts it.
            if !fault.is_some_and(Fault::is_timeout) || is_own_timeout.load(Ordering::Relaxed) {
                dispatch.count(Some(Leg::Prefill), lease.worker(), fault);
                if let Some(fault) = fault {
                    dispatch.leave_ghost(fault, &ghosts.prefill);
                }
            }
            if answer.is_ok() {
                lease.worker().outcomes.took(began.elapsed());
                if let Some(prediction) = &prediction {
                    prediction.observe(lease.worker());
                }
            }
            drop((lease, prediction));
            // The receiver is gone if the client has its whole answer already.
            let _ = outcome_tx.send(answer);
        });
        PrefillLeg::new(worker, outcome, task.abort_handle(), guard, decode_answered)
    }

    async fn prefill(
        &self,
        request: PrefillRequest,
        worker: &Arc<Worker>,
        body: LegBody,
    ) -> Result<Bytes, Fault> {
        let PrefillRequest { endpoint, protocol, path, headers, marks } = &request;
        let fault = |kind| Fault { leg: Some(Leg::Prefill), worker: Arc::clone(worker), kind };
        let limit = self.timeouts.prefill_timeout;
        let answer = timeout(limit, async {
            let sent = self.engines.send(worker, body.request(protocol, path, headers)).await;
            let response = sent.map_err(FaultKind::from)?;
            if !response.status().is_success() {
                return Err(leg::refusal(*endpoint, response, limit).await);
            }
            let body = read_body(response.into_body(), &self.response_limits).await?;
            // Engines up to 0.4 answer 200 when the transfer has failed.
            match engine::answer_fault(*endpoint, &body) {
                Some(error) => Err(leg::error_after_head(error)),
                None => Ok(body),
            }
        })
        .await;
        match answer {
            Ok(Ok(answer)) => {
                if let Some(marks) = marks {
                    marks.prefill_answered(&answer);
                }
                self.generated(worker);
                Ok(answer)
            }
            Ok(Err(kind)) => Err(fault(kind)),
            Err(_) => Err(fault(FaultKind::Timeout { waited_for: "its answer", limit })),
        }
    }

    fn count(&self, leg: Option<Leg>, worker: &Worker, fault: Option<&Fault>) {
        let labels = LegLabels {
            leg: leg.map_or("unified", Leg::as_str),
            worker: worker.name.to_string(),
            outcome: fault.map_or("ok", Fault::reason),
        };
        self.metrics.legs.get_or_create(&labels).inc();
    }
}

/// The part of an [`AttemptRequest`] that the task of the prefill leg needs.
struct PrefillRequest {
    endpoint: Endpoint,
    protocol: Protocol,
    path: PathAndQuery,
    headers: Arc<HeaderMap>,
    marks: Option<Arc<AttemptMarks>>,
}

impl AttemptRequest {
    fn for_prefill(&self) -> PrefillRequest {
        PrefillRequest {
            endpoint: self.request.endpoint(),
            protocol: self.protocol.clone(),
            path: self.path.clone(),
            headers: Arc::clone(&self.headers),
            marks: self.marks.clone(),
        }
    }
}

/// The cause of a failed attempt. An error about the transfer may be a consequence of the other leg's
/// failure: if the other leg fails at once with an error of its own, that one is the cause.
async fn cause(
    fault: Fault,
    in_flight: &mut InFlight,
    response_start: &mut (impl Future<Output = Result<ResponseStart, Fault>> + Unpin),
) -> Fault {
    if !fault.about_transfer() {
        return fault;
    }
    let other = match fault.leg {
        Some(Leg::Decode) if in_flight.awaits_prefill() => {
            timeout(CAUSE_WAIT, in_flight.prefill_answer()).await.ok().and_then(Result::err)
        }
        Some(Leg::Prefill) => timeout(CAUSE_WAIT, response_start).await.ok().and_then(Result::err),
        _ => None,
    };
    other.filter(|other| !other.about_transfer()).unwrap_or(fault)
}

/// How long a worker has been silent while one request waits for it. A busy engine may miss a probe
/// or two and go on.
#[derive(Debug, Default)]
pub(crate) struct Silence(Option<Instant>);

impl Silence {
    /// Whether the silence has lasted for `limit`. `silent`: whether the worker is silent now.
    pub(crate) fn lasts(&mut self, silent: bool, limit: Duration) -> bool {
        if !silent {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(Instant::now).elapsed() >= limit
    }
}
