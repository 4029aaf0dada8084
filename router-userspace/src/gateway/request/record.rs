//! [`Record`]: what became of one request: its log line and its metrics, written when the last
//! byte has left or the client has.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;

use crate::gateway::placement::explain::Choice;
use crate::gateway::placement::placer::Seats;
use crate::metrics::{EndpointLabels, Metrics, RequestLabels};
use crate::scheduler_view::Lesson;

/// One request's story. Written when dropped, however the request ended.
pub(crate) struct Record {
    metrics: Metrics,
    started: Instant,
    pub(crate) request_id: HeaderValue,
    pub(crate) endpoint: &'static str,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) prefill: Option<Arc<str>>,
    /// The decode worker, or the one that serves alone.
    pub(crate) worker: Option<Arc<str>>,
    /// Why this pair, by a policy that predicts.
    pub(crate) choice: Option<Arc<Choice>>,
    pub(crate) attempts: u32,
    status: Option<StatusCode>,
    reason: &'static str,
    detail: Option<String>,
    first_event: Option<Instant>,
    last_event: Option<Instant>,
    events: u64,
    finished: bool,
    /// What is learned of a stream that ended well.
    lesson: Option<Lesson>,
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
            prefill: None,
            worker: None,
            choice: None,
            attempts: 0,
            status: None,
            reason: "ok",
            detail: None,
            first_event: None,
            last_event: None,
            events: 0,
            finished: false,
            lesson: None,
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Who serves the attempt that begins.
    pub(crate) fn seated(&mut self, seats: &Seats) {
        if let Seats::Pair { leases, choice, .. } = seats {
            self.choice.clone_from(choice);
            self.prefill = Some(Arc::clone(&leases.prefill.worker().name));
        }
        self.worker = seats.leases().last().map(|lease| Arc::clone(&lease.worker().name));
    }

    /// Whom the answer's times are evidence of.
    pub(crate) fn teaches(&mut self, lesson: Option<Lesson>) {
        self.lesson = lesson;
    }

    /// The head that the client gets.
    pub(crate) fn answers(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Why the request failed; the first cause counts.
    pub(crate) fn fails(&mut self, reason: &'static str, detail: String) {
        if self.detail.is_none() {
            self.reason = reason;
            self.detail = Some(detail);
        }
    }

    /// One event of a stream passes.
    pub(crate) fn event(&mut self, now: Instant) {
        self.first_event.get_or_insert(now);
        self.last_event = Some(now);
        self.events += 1;
    }

    /// The answer is whole.
    pub(crate) fn finishes(&mut self) {
        self.finished = true;
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
                if let Some(lesson) = self.lesson.as_ref().filter(|_| self.reason == "ok") {
                    lesson.answered(self.events, (last - first) / (self.events - 1) as u32);
                }
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.finished {
            self.fails("client_gone", "the client left before its answer was whole".to_owned());
        }
        let took = self.started.elapsed().as_secs_f64();
        // 499 is nginx's code for a client that left before there was a status.
        let code = self.status.map_or(499, |status| status.as_u16());
        let labels = RequestLabels { endpoint: self.endpoint, code, reason: self.reason };
        self.metrics.requests.get_or_create(&labels).inc();
        self.observe(took);
        let ttft_ms = self.first_event.map(|first| (first - self.started).as_secs_f64() * 1e3);
        tracing::info!(
            request_id = self.request_id.to_str().unwrap_or("?"),
            endpoint = self.endpoint,
            route = self.route.as_deref(),
            status = code,
            reason = self.reason,
            detail = self.detail.as_deref(),
            prefill = self.prefill.as_deref(),
            worker = self.worker.as_deref(),
            attempts = self.attempts,
            ttft_ms,
            events = self.events,
            duration_ms = took * 1e3,
            "request"
        );
    }
}
