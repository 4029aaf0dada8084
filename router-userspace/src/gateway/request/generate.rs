//! Generation: admission, attempts until one has begun to answer, and the answer made of its samples.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use parking_lot::Mutex;
use router_core::fleet::{GhostWeight, ObjectName, Pool, RequestKind, Weight};
use router_core::sglang::logprob::PromptLogprobs;
use router_core::sglang::{Endpoint, Request, headers, merge};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::attempt_record::AttemptRecord;
use super::crash_history::crashes_to_refuse;
use super::early_stream::WaitingGeneration;
use super::keep_alive::KeepAlive;
use super::record::Record;
use super::reject::Reject;
use super::relay::{RelayedEvents, StreamLimits};
use super::response_body::ResponseBody;
use super::retry::{AttemptWorkers, CrashWatch, KeptContent, MAX_KEPT_BODY, RetryState};
use super::routed::{Reply, RouteDeadlines, RoutedRequest};
use crate::gateway::placement::observe::DecodeObservation;
use crate::gateway::placement::placer::{Placement, PlacementRequest};
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::dispatch::{
    AttemptError, AttemptRequest, PairContext, StartedAttempt,
};
use crate::gateway::upstream::fault::{Fault, FaultKind};
use crate::gateway::upstream::first_event::ResponseStart;
use crate::gateway::upstream::in_flight::InFlight;
use crate::gateway::upstream::source::{EventSource, MergedSamples, Sample};
use crate::http_client::Protocol;
use crate::http_client::collector::BodyMemory;
use crate::http_client::response::ReadError;
use crate::metrics::ReasonLabels;

/// Pause before a retry, multiplied by the number of attempts made: an engine that restarts needs a
/// moment.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a retry waits for a worker of the pool to be up, and how often it checks.
const RESTART_GRACE: Duration = Duration::from_secs(1);
const RESTART_POLL: Duration = Duration::from_millis(20);
/// Bytes of a prompt per token, for admission only.
const BYTES_PER_TOKEN: u64 = 4;
/// Output tokens that are reserved for a request without a limit of its own.
const EXPECTED_OUTPUT: u32 = 512;
/// Maximum number of removed fields that are named in the log.
const MAX_NAMED_FIELDS: usize = 16;
/// Maximum number of output tokens that are reserved for a request.
const MAX_OUTPUT: u32 = 2048;

/// A request that was read and checked, and needs an engine.
struct Generation {
    gateway: Arc<Gateway>,
    pool: Arc<Pool>,
    attempt: AttemptRequest,
    wanted: PlacementRequest,
    deadlines: RouteDeadlines,
}

impl Generation {
    /// Makes attempts until one has begun to answer.
    async fn run(self, record: Arc<Mutex<AttemptRecord>>) -> Result<Reply, Reject> {
        let Generation { gateway, mut pool, mut attempt, mut wanted, deadlines } = self;
        let mut retries = RetryState::default();
        loop {
            record.lock().begin();
            let placement = tokio::select! {
                biased;
                admitted = gateway.admission.admit(&pool, &wanted, deadlines.request) => admitted?,
                () = gateway.dispatch.drain_exceeded.cancelled() => return Err(Reject::Draining),
            };
            let samples = attempt.request.samples();
            attempt.marks = Some(record.lock().set_placement(&placement, samples));
            let observation = gateway.admission.decode_observation(&pool, &placement);
            attempt.deadline = deadlines.attempt_deadline();
            let workers = AttemptWorkers::of(&placement);
            let (started, content) = tokio::join!(
                gateway.attempt(&attempt, placement, observation),
                gateway.content_of(&pool.name, &attempt.request),
            );
            if started.is_ok() {
                gateway.settle_refusal(&workers, &mut retries);
            }
            let fault = match started {
                Err(AttemptError::Fault(fault)) => fault,
                Ok(Reply::Events { head, mut events }) => {
                    let watch = |content| CrashWatch::new(&gateway, &pool.name, workers, content);
                    events.crash_watch = content.map(watch);
                    return Ok(Reply::Events { head, events });
                }
                done => return done.map_err(Reject::from),
            };
            let (fault, retry) =
                gateway.decide_retry(&pool, &attempt, fault, &workers, &mut retries).await;
            if !retry {
                return Err(Reject::Fault(fault));
            }
            gateway.metrics.retries.get_or_create(&ReasonLabels { reason: fault.reason() }).inc();
            tracing::debug!(reason = fault.reason(), detail = fault.detail(), "retrying");
            record.lock().retry(&fault);
            wanted.avoid.extend(workers.into_avoided(fault));
            let pause = RETRY_PAUSE * record.lock().count;
            tokio::time::sleep(pause).await;
            gateway.wait_until_up(&pool).await;
            // The fleet may have changed meanwhile.
            if let Some(now) = gateway.fleet.snapshot().pool(&pool.name) {
                pool = Arc::clone(now);
            }
        }
    }
}

impl Gateway {
    /// Serves one generating request of a pool.
    pub(crate) async fn generate(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        endpoint: Endpoint,
        mut routed: RoutedRequest,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let deadline = routed.deadlines.request;
        let body = self.read_body(&mut routed.headers, routed.body, deadline).await?;
        let request = Request::parse_with(endpoint, body, &self.settings.allowed_fields)?;
        log_removed_fields(&request, record);
        record.prompt_bytes = request.prompt_bytes() as u64;
        self.check_model(pool, request.model())?;
        self.check_crashes(&pool.name, &request)?;
        let wanted = PlacementRequest {
            blocks: self.admission.blocks(&request),
            model: request.model().map(str::to_owned),
            weight: weight(&request),
            avoid: Vec::new(),
            only: self.responses.only_worker(pool, &request)?,
        };
        let interval = self.settings.http.sse_ping_interval.filter(|_| request.stream());
        let attempt = AttemptRequest {
            protocol: if pool.h2c { Protocol::H2c } else { Protocol::Http1 },
            request,
            path: routed.path,
            headers: Arc::new(routed.headers),
            deadline: None,
            marks: None,
        };
        pool.history.retry_budget.on_request(self.dispatch.clock.now_ms());
        let (gateway, pool) = (Arc::clone(self), Arc::clone(pool));
        let generation = Generation { gateway, pool, attempt, wanted, deadlines: routed.deadlines };
        let record = Arc::clone(&record.attempts);
        // On the heap also where it stays here: hyper moves the future of a request into its connection.
        let mut running = Box::pin(generation.run(record));
        let Some(interval) = interval else { return running.await };
        if let Ok(reply) = timeout(interval, &mut running).await {
            return reply;
        }
        // A body is not polled while its client does not read: a task of its own keeps the deadlines, and
        // takes the turn in the queue.
        let running = AbortOnDropHandle::new(self.dispatch.tasks.spawn(running));
        let keep_alive = KeepAlive::new(Instant::now(), interval);
        Ok(Reply::Early(WaitingGeneration { running, endpoint, keep_alive }))
    }

    /// Refuses a request whose content was running on engines when they crashed.
    fn check_crashes(&self, pool: &ObjectName, request: &Request) -> Result<(), Reject> {
        let limit = crashes_to_refuse(self.settings.limits.max_engine_crashes);
        match self.crashes.crashes(pool, request, limit) {
            None => Ok(()),
            Some(crashes) => Err(Reject::CrashedEngines(crashes)),
        }
    }

    /// What remains of a streamed request, which is gone when its engine crashes. A long one is hashed while
    /// the engines compute, after the request was sent: no token waits for it.
    async fn content_of(&self, pool: &ObjectName, request: &Request) -> Option<KeptContent> {
        if !request.stream() {
            return None;
        }
        if request.body().len() > MAX_KEPT_BODY {
            yield_now().await;
            return Some(KeptContent::Fingerprint(self.crashes.fingerprint(pool, request)));
        }
        Some(KeptContent::Body(request.endpoint(), request.body().to_vec().into()))
    }

    /// Waits a moment while all workers of the pool are down: in a pool of one pair, an engine that
    /// restarts must not use up all attempts.
    async fn wait_until_up(&self, pool: &Pool) {
        let until = Instant::now() + RESTART_GRACE;
        let up = || self.fleet.load().pool(&pool.name).is_none_or(|pool| pool.can_serve());
        while !up() && Instant::now() < until {
            tokio::time::sleep(RESTART_POLL).await;
        }
    }

    /// One attempt: every sample of the request on one pair, or on one worker.
    async fn attempt(
        self: &Arc<Self>,
        attempt: &AttemptRequest,
        placement: Placement,
        observation: Option<DecodeObservation>,
    ) -> Result<Reply, AttemptError> {
        let (endpoint, watch) = (attempt.request.endpoint(), self.watch_limits(attempt.deadline));
        let limits = StreamLimits { endpoint, watch };
        let memory = self.dispatch.response_limits.memory.clone();
        let reply = match placement {
            Placement::Single(lease) => {
                let started = self.dispatch.begin_alone(attempt, Arc::new(lease)).await?;
                if limits.endpoint == Endpoint::Responses
                    && let Some(id) = started.response.response_id()
                {
                    self.responses.remember(id.into(), started.in_flight.worker());
                }
                single(started, limits, observation, &memory)
            }
            Placement::Pair { leases, bootstrap, prediction, ranks, .. } => {
                let ghosts =
                    Arc::new(leases.as_ref().map(|lease| GhostWeight::new(lease.weight())));
                let leases = leases.map(Arc::new);
                let pair = PairContext { leases, bootstrap, prediction, ranks, ghosts };
                let samples = attempt.request.samples();
                if samples == 1 {
                    let started = self.dispatch.begin(attempt, pair).await?;
                    single(started, limits, observation, &memory)
                } else {
                    // The first failure drops the other samples, which aborts them.
                    let begin = |pair| self.dispatch.begin(attempt, pair);
                    // Each sample owns its part of the pair, which ends with that sample's prefill.
                    let pairs = std::iter::repeat_n(pair, samples as usize);
                    let started = try_join_all(pairs.map(begin)).await?;
                    merged(&attempt.request, started, limits, observation, &memory)
                }
            }
        };
        reply.map_err(|fault| {
            // The parts of the answer cannot be merged: dispatch has not seen this fault.
            self.dispatch.blame(&fault, RequestKind::Generation);
            AttemptError::Fault(fault)
        })
    }
}

/// Names the fields that no engine gets, at most some: they are a client's.
fn log_removed_fields(request: &Request, record: &Record) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let fields: Vec<_> = request.removed_fields().take(MAX_NAMED_FIELDS).collect();
        if !fields.is_empty() {
            let request_id = record.request_id.to_str().unwrap_or("?");
            tracing::debug!(request_id, ?fields, "fields removed; see --allow-fields");
        }
    }
}

fn weight(request: &Request) -> Weight {
    let sequences = request.rooms() as u64 * u64::from(request.samples());
    let output = request.max_output_tokens().unwrap_or(EXPECTED_OUTPUT).min(MAX_OUTPUT);
    let prompt_bytes = request.prompt_bytes() as u64;
    let prompt_tokens = prompt_bytes / BYTES_PER_TOKEN * u64::from(request.samples());
    let exchanges = u64::from(request.samples());
    Weight {
        requests: sequences,
        prompt_bytes,
        kv_tokens: prompt_tokens + u64::from(output) * sequences,
        exchanges,
        wire_bytes: request.body().len() as u64 * exchanges,
    }
}

/// The reply of one sample, or of an engine that makes all samples itself.
fn single(
    started: StartedAttempt,
    limits: StreamLimits,
    observation: Option<DecodeObservation>,
    memory: &Option<BodyMemory>,
) -> Result<Reply, Fault> {
    let logprobs = prompt_logprobs(limits.endpoint, &started)?;
    let StartedAttempt { response, in_flight, .. } = started;
    match response {
        ResponseStart::Stream { head, first, events } => {
            // An error may be appended to what the engine sends.
            let head = headers::to_client(&head.headers, false);
            let sample = Sample::new(limits.endpoint, first, events, logprobs, in_flight);
            let source = EventSource::Single(Box::new(sample));
            let events = RelayedEvents { source, limits, observation, crash_watch: None };
            Ok(Reply::Events { head, events })
        }
        ResponseStart::Whole { head, body } => {
            let is_merged = logprobs.is_some();
            let body = match logprobs {
                Some(logprobs) => logprobs
                    .merge_json(&body)
                    .map_err(|why| malformed(&in_flight, &why.to_string()))
                    .and_then(|body| charge(memory, body, &in_flight))?,
                None => body,
            };
            in_flight.complete();
            Ok(Reply::Whole(whole(headers::to_client(&head.headers, !is_merged), body)))
        }
    }
}

/// The reply merged from n samples.
fn merged(
    request: &Request,
    all: Vec<StartedAttempt>,
    limits: StreamLimits,
    observation: Option<DecodeObservation>,
    memory: &Option<BodyMemory>,
) -> Result<Reply, Fault> {
    let mut head = None;
    let mut samples = Vec::new();
    let mut parts = Vec::new();
    let mut whole_in_flight = Vec::new();
    for started in all {
        let logprobs = prompt_logprobs(request.endpoint(), &started)?;
        let StartedAttempt { response, in_flight, .. } = started;
        head.get_or_insert_with(|| headers::to_client(&response.head().headers, false));
        match response {
            ResponseStart::Stream { first, events, .. } => {
                let endpoint = request.endpoint();
                samples.push(Sample::new(endpoint, first, events, logprobs, in_flight));
            }
            ResponseStart::Whole { body, .. } => {
                let merged = logprobs.map(|logprobs| logprobs.merge_json(&body)).transpose();
                parts.push(
                    merged.map_err(|why| malformed(&in_flight, &why.to_string()))?.unwrap_or(body),
                );
                whole_in_flight.push(in_flight);
            }
        }
    }
    let head = head.unwrap_or_default();
    if parts.is_empty() {
        let source = EventSource::Merged(Box::new(MergedSamples::new(request.endpoint(), samples)));
        let events = RelayedEvents { source, limits, observation, crash_watch: None };
        return Ok(Reply::Events { head, events });
    }
    let merged = merge::json(request.endpoint(), request.samples(), request.batch(), &parts);
    let body = merged.map_err(|why| malformed(&whole_in_flight[0], &why.to_string()))?;
    let body = charge(memory, body, &whole_in_flight[0])?;
    for in_flight in whole_in_flight {
        in_flight.complete();
    }
    Ok(Reply::Whole(whole(head, body)))
}

/// Charges a body that was merged from others.
fn charge(memory: &Option<BodyMemory>, body: Bytes, in_flight: &InFlight) -> Result<Bytes, Fault> {
    let Some(memory) = memory else { return Ok(body) };
    let worker = Arc::clone(in_flight.worker());
    let charged = memory.charge(body);
    charged.map_err(|over| {
        let kind = ReadError::from(over).into();
        Fault { leg: in_flight.leg(), worker, kind }
    })
}

fn malformed(in_flight: &InFlight, why: &str) -> Fault {
    let worker = Arc::clone(in_flight.worker());
    Fault { leg: in_flight.leg(), worker, kind: FaultKind::Malformed(why.to_owned()) }
}

/// The prompt's logprobs of prefill's answer, if the client's answer needs them.
fn prompt_logprobs(
    endpoint: Endpoint,
    started: &StartedAttempt,
) -> Result<Option<PromptLogprobs>, Fault> {
    let Some(answer) = &started.prefill_answer else { return Ok(None) };
    let read = PromptLogprobs::from_prefill(endpoint, answer);
    read.map(Some).map_err(|why| malformed(&started.in_flight, &why.to_string()))
}

fn whole(mut headers: HeaderMap, body: Bytes) -> Response<ResponseBody> {
    // The server sets it from the body.
    headers.remove(CONTENT_LENGTH);
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    let mut response = Response::new(ResponseBody::full(body));
    *response.headers_mut() = headers;
    response
}
