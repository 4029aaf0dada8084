//! [`Record`]: the log line and the metrics of one request, written when the last byte was sent or
//! the client has gone.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::gateway::placement::explain::ChoiceExplanation;
use crate::gateway::placement::placer::Placement;
use crate::metrics::{EndpointLabels, Metrics, RequestLabels};

/// What is logged and counted of one request. Written when dropped, however the request ended.
pub(crate) struct Record {
    metrics: Metrics,
    started: Instant,
    pub(crate) request_id: HeaderValue,
    pub(crate) endpoint: &'static str,
    pub(crate) route: Option<Arc<str>>,
    /// Shared with the generation, which may run in a task of its own.
    pub(crate) attempts: Arc<Mutex<AttemptRecord>>,
    status: Option<StatusCode>,
    reason: &'static str,
    detail: Option<String>,
    first_event: Option<Instant>,
    last_event: Option<Instant>,
    events: u64,
    finished: bool,
}

/// What is recorded of the attempts of a request.
#[derive(Default)]
pub(crate) struct AttemptRecord {
    pub(crate) count: u32,
    /// The prefill worker of the last attempt.
    pub(crate) prefill: Option<Arc<str>>,
    /// The decode worker of the last attempt, or the one that serves alone.
    pub(crate) worker: Option<Arc<str>>,
    /// Why this pair was chosen, if the policy predicts.
    pub(crate) explanation: Option<Arc<ChoiceExplanation>>,
}

impl AttemptRecord {
    /// An attempt at one worker begins. Returns its number.
    pub(crate) fn begin_alone(&mut self, worker: &Arc<str>) -> u32 {
        self.worker = Some(Arc::clone(worker));
        self.count += 1;
        self.count
    }

    /// The workers of the attempt that begins.
    pub(crate) fn set_placement(&mut self, placement: &Placement) {
        if let Placement::Pair { leases, explanation, .. } = placement {
            self.explanation.clone_from(explanation);
            self.prefill = Some(Arc::clone(&leases.prefill.worker().name));
        }
        self.worker = placement.leases().last().map(|lease| Arc::clone(&lease.worker().name));
    }
}

impl Record {
    pub(crate) fn new(metrics: Metrics, request_id: HeaderValue) -> Record {
        metrics.in_flight.inc();
        Record {
            metrics,
            started: Instant::now(),
            request_id,
            endpoint: "other",
            route: None,
            attempts: Arc::default(),
            status: None,
            reason: "ok",
            detail: None,
            first_event: None,
            last_event: None,
            events: 0,
            finished: false,
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The status that the client gets.
    pub(crate) fn set_status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Why the request failed; the first cause is kept.
    pub(crate) fn fail(&mut self, reason: &'static str, detail: String) {
        if self.detail.is_none() {
            self.reason = reason;
            self.detail = Some(detail);
        }
    }

    /// One event of a stream is sent.
    pub(crate) fn event(&mut self, now: Instant) {
        self.first_event.get_or_insert(now);
        self.last_event = Some(now);
        self.events += 1;
    }

    /// The answer is whole.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }

    /// The number of events of a stream and their mean distance; `None` below two events.
    pub(crate) fn pace(&self) -> Option<(u64, Duration)> {
        let gaps = self.events.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some((self.events, (self.last_event? - self.first_event?) / gaps as u32))
    }

    fn observe(&self, took: f64) {
        let endpoint = EndpointLabels { endpoint: self.endpoint };
        self.metrics.request_duration.get_or_create(&endpoint).observe(took);
        if let (Some(first), Some(last)) = (self.first_event, self.last_event) {
            let ttft = (first - self.started).as_secs_f64();
            self.metrics.time_to_first_token.get_or_create(&endpoint).observe(ttft);
            if self.events > 1 {
                let gap = (last - first).as_secs_f64() / (self.events - 1) as f64;
                self.metrics.inter_token_latency.get_or_create(&endpoint).observe(gap);
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.finished {
            self.fail("client_gone", "the client left before its answer was whole".to_owned());
        }
        let took = self.started.elapsed().as_secs_f64();
        // 499 is nginx's code for a client that closed its connection before it got a status.
        let code = self.status.map_or(499, |status| status.as_u16());
        let labels = RequestLabels { endpoint: self.endpoint, code, reason: self.reason };
        self.metrics.requests.get_or_create(&labels).inc();
        self.observe(took);
        let attempts = self.attempts.lock();
        let ttft_ms = self.first_event.map(|first| (first - self.started).as_secs_f64() * 1e3);
        tracing::info!(
            request_id = self.request_id.to_str().unwrap_or("?"),
            endpoint = self.endpoint,
            route = self.route.as_deref(),
            status = code,
            reason = self.reason,
            detail = self.detail.as_deref(),
            prefill = attempts.prefill.as_deref(),
            worker = attempts.worker.as_deref(),
            attempts = attempts.count,
            ttft_ms,
            events = self.events,
            duration_ms = took * 1e3,
            "request"
        );
    }
}
