//! Dispatch: one attempt's requests to the engines, and the race between its two legs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response};
use hyper::body::Incoming;
use router_core::fleet::{Lease, RankAssignment, Worker};
use router_core::pair::{Leg, Pair};
use router_core::sglang::{
    Attempt, BootstrapAddress, Endpoint, Request, Rid, Room, SplicedBody, fault as engine,
    ranks_by_field,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::abort::{AbortGuard, Aborter};
use super::fault::{Fault, Kind};
use super::first_event::{Opened, open};
use super::in_flight::{Flight, PrefillLeg};
use super::leg;
use crate::clock::Clock;
use crate::config::TimeoutFlags;
use crate::gateway::request::reject::Reject;
use crate::gateway::workers::probe::Probes;
use crate::http_client::read_body;
use crate::http_client::{HttpClient, Protocol, whole};
use crate::metrics::{LegLabels, Metrics};
use crate::scheduler_view::Forecast;

/// How often a waiting attempt looks whether its workers still answer probes.
const HEALTH_LOOK: Duration = Duration::from_millis(250);
/// How long the other leg's own word is awaited when one leg speaks of the transfer.
const CAUSE_WAIT: Duration = Duration::from_millis(100);

/// What every attempt of a request sends.
pub(crate) struct Order {
    pub request: Request,
    /// How the pool's engines are spoken to.
    pub protocol: Protocol,
    pub path: PathAndQuery,
    /// End to end headers, without engine control.
    pub headers: HeaderMap,
    pub deadline: Option<Instant>,
}

/// A pair with its leases, and where it meets.
pub(crate) struct Places {
    pub leases: Pair<Arc<Lease>>,
    pub bootstrap: BootstrapAddress,
    /// What prefill's answer is evidence for.
    pub forecast: Option<Forecast>,
    pub ranks: Pair<Option<RankAssignment>>,
}

/// One sample's answer has begun.
pub(crate) struct Begun {
    pub opened: Opened,
    /// Prefill's whole answer, where the client's must be made of both.
    pub prefill_answer: Option<Bytes>,
    pub flight: Flight,
}

/// Sends requests to engines; shared by all requests.
pub(crate) struct Dispatch {
    pub upstream: HttpClient,
    pub aborter: Arc<Aborter>,
    pub probes: Arc<Probes>,
    pub tasks: TaskTracker,
    pub timeouts: TimeoutFlags,
    pub max_answer: usize,
    pub clock: Clock,
    pub metrics: Metrics,
    /// Cancelled when the time to drain is over: what still runs ends with an error.
    pub cut: CancellationToken,
}

impl Dispatch {
    /// Sends one sample to both engines of a pair, with a room and a name of its own, and waits
    /// until decode's answer begins.
    ///
    /// # Errors
    /// The first leg that failed; the other one is cancelled and aborted by then. Dropping the
    /// future cancels and aborts both.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        order: &Order,
        places: &Places,
    ) -> Result<Begun, Reject> {
        let count = order.request.rooms();
        let room = |_| Room::steered(rand::random(), &places.ranks);
        let rooms: Vec<Room> = (0..count).map(room).collect();
        let rids: Vec<Rid> = (0..count).map(|_| Rid::from_random(rand::random())).collect();
        let bodies = order.request.inject(&Attempt {
            bootstrap: &places.bootstrap,
            rooms: &rooms,
            rids: &rids,
            dp: ranks_by_field(&places.ranks),
        });
        let names: Vec<String> =
            rids.iter().filter_map(|rid| order.request.endpoint().abort_rid(rid)).collect();
        let prefill = self.send_prefill(order, places, bodies.prefill, &names);
        let worker = places.leases.decode.worker();
        let guard = AbortGuard::new(&self.aborter, worker, names);
        let flight = Flight::new(prefill, guard, Arc::clone(&places.leases.decode));
        self.race(order, bodies.decode, flight).await
    }

    /// Sends a request to one engine that serves alone.
    pub(crate) async fn begin_alone(
        self: &Arc<Self>,
        order: &Order,
        lease: Arc<Lease>,
    ) -> Result<Begun, Reject> {
        let count = order.request.rooms();
        let rids: Vec<Rid> = (0..count).map(|_| Rid::from_random(rand::random())).collect();
        // An engine that samples n times itself gives the copies names of its own.
        let endpoint = order.request.endpoint();
        let names = match order.request.samples() {
            1 => rids.iter().filter_map(|rid| endpoint.abort_rid(rid)).collect(),
            _ => Vec::new(),
        };
        let guard = AbortGuard::new(&self.aborter, lease.worker(), names);
        let body = order.request.plain(&rids);
        self.race(order, body, Flight::alone(guard, lease)).await
    }

    /// Decode's opening against everything that ends the attempt early.
    async fn race(
        self: &Arc<Self>,
        order: &Order,
        body: SplicedBody,
        mut flight: Flight,
    ) -> Result<Begun, Reject> {
        let worker = Arc::clone(flight.worker());
        let leg = flight.leg();
        let opening = self.opening(order, leg, &worker, body);
        tokio::pin!(opening);
        let mut look = interval_at(Instant::now() + HEALTH_LOOK, HEALTH_LOOK);
        let merges = order.request.wants_logprob_merge();
        let (mut prefill, mut opened) = (None, None);
        let mut silence = Silence::default();
        let fault = loop {
            tokio::select! {
                // An answer that has begun counts more than a failure that came with it.
                biased;
                answer = &mut opening, if opened.is_none() => match answer {
                    Ok(answer) => {
                        worker.health.answered();
                        if !merges || !flight.awaits_prefill() {
                            return Ok(Begun { opened: answer, prefill_answer: prefill, flight });
                        }
                        opened = Some(answer);
                    }
                    Err(fault) => break fault,
                },
                answer = flight.prefill_answer(), if flight.awaits_prefill() => match answer {
                    Ok(answer) => {
                        prefill = Some(answer).filter(|_| merges);
                        if let Some(opened) = opened.take() {
                            return Ok(Begun { opened, prefill_answer: prefill, flight });
                        }
                    }
                    Err(fault) => break fault,
                },
                _ = look.tick() => {
                    if self.cut.is_cancelled() {
                        return Err(Reject::Draining);
                    }
                    let fault = flight.silent();
                    let lasts = silence.lasts(fault.is_some(), self.timeouts.silent_timeout);
                    if let Some(fault) = fault.filter(|_| lasts) {
                        break fault;
                    }
                }
                () = leg::until(order.deadline) => return Err(Reject::Deadline),
            }
        };
        let fault = match opened {
            None => cause(fault, &mut flight, &mut opening).await,
            // Decode has said its word, and it was no complaint.
            Some(_) => fault,
        };
        flight.failed(&fault);
        self.blame(&fault);
        Err(Reject::Fault(fault))
    }

    /// Charges the one worker that failed, and has the ones in doubt looked at.
    pub(crate) fn blame(&self, fault: &Fault) {
        fault.charge(self.clock.now_ms());
        if fault.wants_probe() {
            self.probes.look(&fault.worker);
        }
    }

    async fn opening(
        self: &Arc<Self>,
        order: &Order,
        leg: Option<Leg>,
        worker: &Arc<Worker>,
        body: SplicedBody,
    ) -> Result<Opened, Fault> {
        let opened = async {
            let response = self.head(order, leg, worker, body).await?;
            let opened = open(response, &order.request, self.max_answer).await;
            opened.map_err(|kind| Fault { leg, worker: Arc::clone(worker), kind })
        };
        // Only a stream says early that it has begun; a whole answer takes as long as it takes.
        let limit = self.timeouts.first_event_timeout;
        let opened = if order.request.stream() {
            let late = Kind::Late { waited_for: "the first event of its answer", limit };
            let late = Fault { leg, worker: Arc::clone(worker), kind: late };
            timeout(limit, opened).await.unwrap_or(Err(late))
        } else {
            opened.await
        };
        self.count(leg, worker, opened.as_ref().err());
        opened
    }

    /// Sends one body; an answer that is not a success is a fault.
    async fn head(
        &self,
        order: &Order,
        leg: Option<Leg>,
        worker: &Arc<Worker>,
        body: SplicedBody,
    ) -> Result<Response<Incoming>, Fault> {
        let (path, headers) = (order.path.clone(), order.headers.clone());
        let to = worker.authority.clone();
        let sent =
            self.upstream.send_over(order.protocol, to, Method::POST, path, headers, whole(body));
        let sent = sent.await;
        let fault = |kind| Fault { leg, worker: Arc::clone(worker), kind };
        let response = sent.map_err(|error| fault(error.into()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(fault(leg::refusal(order.request.endpoint(), response).await))
    }

    /// Sends the prefill leg from a task of its own, which drains the answer under its lease.
    fn send_prefill(
        self: &Arc<Self>,
        order: &Order,
        places: &Places,
        body: SplicedBody,
        names: &[String],
    ) -> PrefillLeg {
        let (tell, outcome) = oneshot::channel();
        let lease = &places.leases.prefill;
        let forecast = places.forecast.clone();
        let guard = AbortGuard::new(&self.aborter, lease.worker(), names.to_vec());
        let worker = Arc::clone(lease.worker());
        let dispatch = Arc::clone(self);
        let lease = Arc::clone(lease);
        let order = order.for_prefill();
        let task = self.tasks.spawn(async move {
            let answer = dispatch.prefill(&order, lease.worker(), body).await;
            dispatch.count(Some(Leg::Prefill), lease.worker(), answer.as_ref().err());
            if let (Some(forecast), Ok(_)) = (&forecast, &answer) {
                forecast.came(lease.worker());
            }
            drop(lease);
            // Nobody listens where the client has its answer already.
            let _ = tell.send(answer);
        });
        PrefillLeg::new(worker, outcome, task.abort_handle(), guard)
    }

    async fn prefill(
        &self,
        order: &PrefillOrder,
        worker: &Arc<Worker>,
        body: SplicedBody,
    ) -> Result<Bytes, Fault> {
        let fault = |kind| Fault { leg: Some(Leg::Prefill), worker: Arc::clone(worker), kind };
        let limit = self.timeouts.prefill_timeout;
        let answer = async {
            let (path, headers) = (order.path.clone(), order.headers.clone());
            let (to, body) = (worker.authority.clone(), whole(body));
            let sent =
                self.upstream.send_over(order.protocol, to, Method::POST, path, headers, body);
            let response = sent.await.map_err(Kind::from)?;
            if !response.status().is_success() {
                return Err(leg::refusal(order.endpoint, response).await);
            }
            let body = read_body(response.into_body(), self.max_answer).await;
            let body = body.map_err(Kind::Broken)?;
            // Engines up to 0.4 say 200 when the transfer failed.
            match engine::answer_fault(order.endpoint, &body) {
                Some(told) => Err(leg::told_late(told)),
                None => Ok(body),
            }
        };
        match timeout(limit, answer).await {
            Ok(Ok(answer)) => {
                worker.health.answered();
                Ok(answer)
            }
            Ok(Err(kind)) => Err(fault(kind)),
            Err(_) => Err(fault(Kind::Late { waited_for: "its answer", limit })),
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

/// What the prefill leg needs of an [`Order`], to live in a task of its own.
struct PrefillOrder {
    endpoint: Endpoint,
    protocol: Protocol,
    path: PathAndQuery,
    headers: HeaderMap,
}

impl Order {
    fn for_prefill(&self) -> PrefillOrder {
        PrefillOrder {
            endpoint: self.request.endpoint(),
            protocol: self.protocol,
            path: self.path.clone(),
            headers: self.headers.clone(),
        }
    }
}

/// A leg that speaks of the transfer may only report what the other one did: its own word, if
/// it comes at once, is the cause.
async fn cause(
    fault: Fault,
    flight: &mut Flight,
    opening: &mut (impl Future<Output = Result<Opened, Fault>> + Unpin),
) -> Fault {
    if !fault.about_transfer() {
        return fault;
    }
    let other = match fault.leg {
        Some(Leg::Decode) if flight.awaits_prefill() => {
            timeout(CAUSE_WAIT, flight.prefill_answer()).await.ok().and_then(Result::err)
        }
        Some(Leg::Prefill) => timeout(CAUSE_WAIT, opening).await.ok().and_then(Result::err),
        _ => None,
    };
    other.filter(|other| !other.about_transfer()).unwrap_or(fault)
}

/// For how long a worker has been silent, as one of its requests sees it. A busy engine may miss
/// a probe or two and go on.
#[derive(Debug, Default)]
pub(crate) struct Silence(Option<Instant>);

impl Silence {
    /// Whether it has lasted for `limit`, told whether it is silent now.
    pub(crate) fn lasts(&mut self, silent: bool, limit: Duration) -> bool {
        if !silent {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(Instant::now).elapsed() >= limit
    }
}
