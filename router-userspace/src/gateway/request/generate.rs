//! Generation: admission, attempts on pairs until one is committed to, and the answer made of
//! its samples.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use router_core::fleet::{Pool, Weight};
use router_core::sglang::logprob::InputLogprobs;
use router_core::sglang::{Endpoint, Request, headers, merge};

use tokio::time::Instant;

use super::body::{self, Answer};
use super::handle::{Call, Limits, Reply};
use super::info::serves;
use super::record::Record;
use super::reject::Reject;
use super::relay::Patience;
use super::retry::{Before, Setbacks};
use crate::gateway::placement::placer::{Ask, Seats};
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::dispatch::{Begun, Order, Places};
use crate::gateway::upstream::fault::{Fault, Kind};
use crate::gateway::upstream::first_event::Opened;
use crate::gateway::upstream::leg::until;
use crate::gateway::upstream::source::{Many, Sample, Source};
use crate::http_client::Protocol;

/// Between two attempts, times the attempts made: an engine that restarts needs a moment.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long an attempt waits for anybody to be up again, and how often it looks.
const RESTART_GRACE: Duration = Duration::from_secs(1);
const RESTART_LOOK: Duration = Duration::from_millis(20);
/// Bytes of a prompt that make a token, for admission only.
const BYTES_PER_TOKEN: u64 = 4;
/// Output tokens that are reserved where the client gives no bound, and at most.
const EXPECTED_OUTPUT: u32 = 512;
const MOST_OUTPUT: u32 = 2048;

impl Gateway {
    /// Serves one generating request of a pool.
    pub(crate) async fn generate(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        endpoint: Endpoint,
        call: Call,
        record: &mut Record,
    ) -> Result<Reply, Reject> {
        let limit = self.settings.limits.max_body;
        let patience = self.settings.timeouts.body_timeout;
        let memory = &self.body_memory;
        let (body, _memory) = tokio::select! {
            body = body::read(&call.parts.headers, call.body, limit, patience, memory) => body?,
            () = until(call.timeouts.deadline) => return Err(Reject::Deadline),
        };
        let request = Request::parse(endpoint, body)?;
        let mut ask = Ask {
            blocks: self.admission.blocks(&request),
            model: request.model().map(str::to_owned),
            weight: weight(&request),
            avoid: Vec::new(),
            only: self.continues(pool, &request)?,
        };
        let (path, headers) = (call.path, call.headers);
        let protocol = if pool.h2c { Protocol::H2c } else { Protocol::Http1 };
        let mut order = Order { request, protocol, path, headers, deadline: None };
        let mut setbacks = Setbacks::default();
        let mut pool = Arc::clone(pool);
        loop {
            record.attempts += 1;
            let seats = self.admission.admit(&pool, &ask, call.timeouts.deadline).await?;
            record.seated(&seats);
            record.teaches(self.admission.lesson(&pool, &seats));
            order.deadline = call.timeouts.attempt_deadline();
            let before = Before::of(&seats);
            let fault = match self.attempt(&order, seats, call.timeouts).await {
                Err(Reject::Fault(fault)) => fault,
                done => return done,
            };
            let (fault, again) = self.weigh(&pool, fault, &before, &mut setbacks).await;
            if !again {
                return Err(Reject::Fault(fault));
            }
            let reason = crate::metrics::ReasonLabels { reason: fault.reason() };
            self.metrics.retries.get_or_create(&reason).inc();
            tracing::debug!(reason = fault.reason(), detail = fault.detail(), "tries another pair");
            // A transfer fault may be either worker's.
            match fault.about_transfer() {
                true => ask.avoid.extend(before.workers),
                false => ask.avoid.push(fault.worker),
            }
            tokio::time::sleep(RETRY_PAUSE * record.attempts).await;
            self.somebody_up(&pool).await;
            // Pods may have come and gone meanwhile.
            if let Some(now) = self.fleet.snapshot().pool(&pool.name) {
                pool = Arc::clone(now);
            }
        }
    }

    /// Waits a moment where everybody of the pool is down: of a pool of one pair, an engine that
    /// restarts must not use up all attempts.
    async fn somebody_up(&self, pool: &Pool) {
        let until = Instant::now() + RESTART_GRACE;
        let up = || self.fleet.load().pool(&pool.name).is_none_or(|pool| serves(pool));
        while !up() && Instant::now() < until {
            tokio::time::sleep(RESTART_LOOK).await;
        }
    }

    /// One attempt: every sample of the request on one pair, or on one worker.
    async fn attempt(
        self: &Arc<Self>,
        order: &Order,
        seats: Seats,
        limits: Limits,
    ) -> Result<Reply, Reject> {
        let patience = Patience {
            endpoint: order.request.endpoint(),
            idle: self.settings.timeouts.stream_idle_timeout,
            deadline: limits.attempt_deadline(),
        };
        let reply = match seats {
            Seats::One(lease) => {
                let begun = self.dispatch.begin_alone(order, Arc::new(lease)).await?;
                self.responses.learn(patience.endpoint, &begun);
                one(begun, patience)
            }
            Seats::Pair { leases, bootstrap, forecast, ranks, .. } => {
                let leases = leases.map(Arc::new);
                let places = Places { leases, bootstrap, forecast, ranks };
                let samples = order.request.samples();
                if samples == 1 {
                    one(self.dispatch.begin(order, &places).await?, patience)
                } else {
                    // The first failure drops the others, which aborts them.
                    let begun = (0..samples).map(|_| self.dispatch.begin(order, &places));
                    many(&order.request, try_join_all(begun).await?, patience)
                }
            }
        };
        reply.inspect_err(|reject| {
            // Parts that make no answer: the race could not know.
            if let Reject::Fault(fault) = reject {
                self.dispatch.blame(fault);
            }
        })
    }
}

fn weight(request: &Request) -> Weight {
    let sequences = request.rooms() as u64 * u64::from(request.samples());
    let output = request.max_output_tokens().unwrap_or(EXPECTED_OUTPUT).min(MOST_OUTPUT);
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

fn one(begun: Begun, patience: Patience) -> Result<Reply, Reject> {
    let logprobs = input_logprobs(&begun)?;
    let Begun { opened, flight, .. } = begun;
    match opened {
        Opened::Stream { head, first, events } => {
            // An error may be appended to what the engine sends.
            let head = headers::to_client(&head.headers, false);
            let sample = Sample::new(patience.endpoint, first, events, logprobs, flight);
            let source = Source::One(Box::new(sample));
            Ok(Reply::Events { head, source, patience })
        }
        Opened::Whole { head, body } => {
            let merged = logprobs.is_some();
            let body = match logprobs {
                Some(logprobs) => logprobs.merge_json(&body).map_err(|why| {
                    let worker = Arc::clone(flight.worker());
                    Fault { leg: flight.leg(), worker, kind: Kind::Malformed(why.to_string()) }
                })?,
                None => body,
            };
            flight.land();
            Ok(Reply::Whole(whole(headers::to_client(&head.headers, !merged), body)))
        }
    }
}

fn many(request: &Request, begun: Vec<Begun>, patience: Patience) -> Result<Reply, Reject> {
    let mut head = None;
    let mut samples = Vec::new();
    let mut parts = Vec::new();
    let mut flights = Vec::new();
    for begun in begun {
        let logprobs = input_logprobs(&begun)?;
        let Begun { opened, flight, .. } = begun;
        head.get_or_insert_with(|| headers::to_client(&opened.head().headers, false));
        match opened {
            Opened::Stream { first, events, .. } => {
                let endpoint = request.endpoint();
                samples.push(Sample::new(endpoint, first, events, logprobs, flight));
            }
            Opened::Whole { body, .. } => {
                let merged = logprobs.map(|logprobs| logprobs.merge_json(&body)).transpose();
                parts.push(
                    merged.map_err(|why| malformed(&flight, &why.to_string()))?.unwrap_or(body),
                );
                flights.push(flight);
            }
        }
    }
    let head = head.unwrap_or_default();
    if parts.is_empty() {
        let source = Source::Many(Box::new(Many::new(request.endpoint(), samples)));
        return Ok(Reply::Events { head, source, patience });
    }
    let merged = merge::json(request.endpoint(), request.samples(), request.batch(), &parts);
    let body = merged.map_err(|why| malformed(&flights[0], &why.to_string()))?;
    for flight in flights {
        flight.land();
    }
    Ok(Reply::Whole(whole(head, body)))
}

fn malformed(flight: &crate::gateway::upstream::in_flight::Flight, why: &str) -> Fault {
    let worker = Arc::clone(flight.worker());
    Fault { leg: flight.leg(), worker, kind: Kind::Malformed(why.to_owned()) }
}

/// The prompt's logprobs of prefill's answer, where it was waited for.
fn input_logprobs(begun: &Begun) -> Result<Option<InputLogprobs>, Reject> {
    let Some(answer) = &begun.prefill_answer else { return Ok(None) };
    let read = InputLogprobs::from_prefill(answer);
    read.map(Some).map_err(|why| Reject::Fault(malformed(&begun.flight, &why.to_string())))
}

fn whole(mut headers: HeaderMap, body: Bytes) -> Response<Answer> {
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    let mut response = Response::new(Answer::whole(body));
    *response.headers_mut() = headers;
    response
}
