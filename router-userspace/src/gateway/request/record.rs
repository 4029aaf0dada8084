//! [`Record`]: the log line and the metrics of one request, written when the last byte was sent or
//! the client has gone.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use router_core::fleet::ObjectName;
use router_core::inner_parts::{InnerMoments, InnerParts};
use router_core::provenance::Measured;
use router_core::timeline::{Moments, Timeline, TimelinePart};
use tokio::time::Instant;

use super::attempt_record::{AttemptRecord, micros_between};
use crate::gateway::shared::Gateway;
use crate::gateway::timeline::recent::RecentRequests;
use crate::gateway::timeline::summary::{InnerSource, RequestSummary, shortened};
use crate::gateway::traces::TraceExporter;
use crate::gateway::traces::traceparent::TraceContext;
use crate::metrics::{EndpointLabels, Metrics, RequestLabels, observe_known};

/// What is logged and counted of one request. Written when dropped, however the request ended.
pub(crate) struct Record {
    metrics: Metrics,
    recent: Arc<RecentRequests>,
    traces: Option<TraceExporter>,
    /// The trace that its spans belong to; `None` for one that is not exported.
    pub(crate) trace: Option<TraceContext>,
    started: Instant,
    pub(crate) request_id: HeaderValue,
    pub(crate) endpoint: &'static str,
    pub(crate) route: Option<Arc<str>>,
    /// The pool that the request is for.
    pub(crate) pool: Option<ObjectName>,
    pub(crate) prompt_bytes: u64,
    /// Shared with the generation, which may run in a task of its own.
    pub(crate) attempts: Arc<Mutex<AttemptRecord>>,
    status: Option<StatusCode>,
    reason: &'static str,
    detail: Option<String>,
    first_event: Option<Instant>,
    last_event: Option<Instant>,
    events: u64,
    event_bytes: u64,
    finished: bool,
}

impl Record {
    pub(crate) fn new(gateway: &Gateway, request_id: HeaderValue) -> Record {
        gateway.metrics.in_flight.inc();
        let started = Instant::now();
        Record {
            metrics: gateway.metrics.clone(),
            recent: Arc::clone(&gateway.recent),
            traces: gateway.traces.clone(),
            trace: None,
            started,
            request_id,
            endpoint: "other",
            route: None,
            pool: None,
            prompt_bytes: 0,
            attempts: Arc::new(Mutex::new(AttemptRecord::new(started))),
            status: None,
            reason: "ok",
            detail: None,
            first_event: None,
            last_event: None,
            events: 0,
            event_bytes: 0,
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
    pub(crate) fn event(&mut self, now: Instant, bytes: usize) {
        self.first_event.get_or_insert(now);
        self.last_event = Some(now);
        self.events += 1;
        self.event_bytes += bytes as u64;
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

    /// The parts of the request so far, when the head of its response is sent. `has_event`: the first event
    /// of a stream is at hand. `is_whole`: the answer is. `None` if no attempt has begun.
    pub(crate) fn timeline_at_head(&self, has_event: bool, is_whole: bool) -> Option<Timeline> {
        let now = Instant::now();
        let mut moments = self.attempts.lock().moments();
        moments.first_attempt_us?;
        moments.first_event_us = has_event.then(|| micros_between(self.started, now));
        moments.ended_us = micros_between(self.started, now);
        moments.is_whole = (has_event || is_whole) && self.detail.is_none();
        Some(Timeline::of(&moments))
    }

    /// The parts inside the engines that are known when the head of the response is sent.
    pub(crate) fn inner_at_head(&self, has_event: bool) -> InnerParts {
        let mut inner = self.inner(&self.attempts.lock());
        let now_us = micros_between(self.started, Instant::now());
        inner.moments.first_event_us = has_event.then_some(now_us);
        InnerParts::of(&inner.moments())
    }

    fn moments(&self, attempts: &AttemptRecord, ended: Instant) -> Moments {
        Moments {
            first_event_us: self.first_event.map(|first| micros_between(self.started, first)),
            ended_us: micros_between(self.started, ended),
            is_whole: self.finished && self.detail.is_none(),
            ..attempts.moments()
        }
    }

    /// Writes the log line.
    fn log(&self, code: u16, attempts: &AttemptRecord, timeline: &Timeline, took: Duration) {
        let ms = |part| timeline.part(part).value();
        let ttft_ms = self.first_event.map(|first| (first - self.started).as_secs_f64() * 1e3);
        tracing::info!(
            request_id = self.request_id.to_str().unwrap_or("?"),
            endpoint = self.endpoint,
            route = self.route.as_deref(),
            status = code,
            reason = self.reason,
            detail = self.detail.as_deref(),
            prefill = attempts.workers.prefill.as_deref(),
            worker = attempts.workers.worker.as_deref(),
            attempts = attempts.count,
            ttft_ms,
            received_ms = ms(TimelinePart::Received),
            retried_ms = ms(TimelinePart::Retried),
            queued_ms = ms(TimelinePart::Queued),
            sent_ms = ms(TimelinePart::Sent),
            prefill_ms = ms(TimelinePart::Prefill),
            first_byte_ms = ms(TimelinePart::FirstByte),
            events = self.events,
            duration_ms = took.as_secs_f64() * 1e3,
            "request"
        );
    }

    /// What the parts inside the engines of the last attempt are computed from.
    fn inner(&self, attempts: &AttemptRecord) -> InnerSource {
        let marks = attempts.marks.as_ref();
        let moments = InnerMoments {
            report: marks.map(|marks| marks.report()).unwrap_or_default(),
            sent_us: marks.and_then(|marks| marks.sent_us()),
            first_event_us: self.first_event.map(|first| micros_between(self.started, first)),
            transfer: None,
        };
        InnerSource { moments, marks: marks.filter(|marks| marks.has_one_room()).cloned() }
    }

    /// Counts the parts inside the engines of a streamed request, once an agent has reported the end of its
    /// transfer: now, or while the request is kept.
    fn count_inner(&self, pool: &ObjectName, inner: &InnerSource) {
        let Some(marks) = inner.marks.as_ref().filter(|_| self.first_event.is_some()) else {
            return;
        };
        let Some(histograms) = self.metrics.inner_parts.of_pool(pool) else { return };
        let moments = inner.moments;
        marks.when_transferred(move |seen| {
            let parts = InnerParts::of(&InnerMoments { transfer: Some(*seen), ..moments });
            observe_known(&histograms, parts.of_agents().into_iter());
        });
    }

    /// Counts the parts, and keeps the request for `/requests`.
    fn keep(
        &mut self,
        code: u16,
        attempts: &mut AttemptRecord,
        timeline: Timeline,
        took: Duration,
    ) {
        let Some(pool) = self.pool.take() else { return };
        if self.first_event.is_some() {
            self.metrics.ttft_parts.observe(&pool, timeline.parts().map(|(_, ms)| ms));
        }
        let inner = self.inner(attempts);
        self.count_inner(&pool, &inner);
        let exported = self.traces.as_ref().zip(self.trace);
        if self.recent.is_off() && exported.is_none() {
            return;
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ttft = self.first_event.map(|first| first - self.started);
        let report = inner.moments.report;
        let kept = self.recent.keep(RequestSummary {
            number: 0,
            id: String::from_utf8_lossy(self.request_id.as_bytes()).into(),
            started_ms: u64::try_from(since_1970.saturating_sub(took).as_millis()).unwrap_or(0),
            pool,
            endpoint: self.endpoint,
            route: self.route.take(),
            status: code,
            reason: self.reason,
            detail: self.detail.as_deref().map(shortened),
            attempts: attempts.count,
            retries: std::mem::take(&mut attempts.retries),
            workers: std::mem::take(&mut attempts.workers),
            ranks: attempts.ranks,
            duration_ms: took.as_secs_f64() * 1e3,
            ttft_ms: Measured::from(ttft.map(|ttft| ttft.as_secs_f64() * 1e3)),
            ended_in: timeline.ended_in().as_str(),
            timeline,
            inner,
            explanation: attempts.explanation.take(),
            prompt_bytes: self.prompt_bytes,
            prefill_report: report,
            events: self.events,
            event_bytes: self.event_bytes,
        });
        if let Some((traces, context)) = exported {
            traces.offer(&kept, context);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.finished {
            self.fail("client_gone", "the client left before its answer was whole".to_owned());
        }
        let ended = Instant::now();
        let took = ended - self.started;
        // 499 is nginx's code for a client that closed its connection before it got a status.
        let code = self.status.map_or(499, |status| status.as_u16());
        let labels = RequestLabels { endpoint: self.endpoint, code, reason: self.reason };
        self.metrics.requests.get_or_create(&labels).inc();
        self.observe(took.as_secs_f64());
        let attempts = Arc::clone(&self.attempts);
        let mut attempts = attempts.lock();
        let timeline = Timeline::of(&self.moments(&attempts, ended));
        self.log(code, &attempts, &timeline, took);
        self.keep(code, &mut attempts, timeline, took);
    }
}
