//! [`TraceExporter`]: sends the spans of requests that have ended to an OpenTelemetry collector.
//!
//! Spans are made of the kept timeline of a request, by a task of their own: a request pays for a slot in a
//! queue alone. A collector that is slow or away loses spans, which are counted, and delays no request.

mod spans;
pub(crate) mod traceparent;

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::traceparent::TraceContext;
use crate::config::{TraceEndpoint, TraceFlags};
use crate::gateway::timeline::summary::RequestSummary;
use crate::http_client::response::{ReadLimits, read_body};
use crate::http_client::{HttpClient, KnownRequest, Protocol};
use crate::metrics::{Metrics, TraceLabels};

/// Maximum number of requests that wait to be exported. Further ones are dropped, and counted.
const MAX_QUEUED: usize = 2048;
/// Maximum number of requests that are sent at once.
const MAX_BATCH: usize = 256;
/// Time for which a batch is filled.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Time for a collector to take a batch. It is not sent again.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the last batches when the gateway ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ANSWER: usize = 64 << 10;

/// A request that is exported.
struct FinishedRequest {
    request: Arc<RequestSummary>,
    context: TraceContext,
}

/// The queue of the requests that are exported.
#[derive(Clone)]
pub(crate) struct TraceExporter {
    queue: mpsc::Sender<FinishedRequest>,
    share: f64,
    metrics: Metrics,
}

/// Takes requests from the queue and sends their spans.
struct TraceSender {
    queue: mpsc::Receiver<FinishedRequest>,
    endpoint: TraceEndpoint,
    http: HttpClient,
    metrics: Metrics,
    /// Distinguishes this process from others of the same service.
    instance: String,
    is_failing: bool,
}

impl TraceExporter {
    /// Starts the task that sends, which ends with `stop`. `None` without an endpoint.
    pub(crate) fn start(
        flags: &TraceFlags,
        http: &HttpClient,
        metrics: &Metrics,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Option<TraceExporter> {
        let endpoint = flags.otlp_traces_endpoint.clone()?;
        let (sender, queue) = mpsc::channel(MAX_QUEUED);
        let (http, metrics) = (http.clone(), metrics.clone());
        let exporter =
            TraceExporter { queue: sender, share: flags.trace_ratio, metrics: metrics.clone() };
        let instance = format!("{:016x}", rand::random::<u64>());
        let sender = TraceSender { queue, endpoint, http, metrics, instance, is_failing: false };
        tasks.spawn(sender.run(stop.clone()));
        Some(exporter)
    }

    /// Exports a request that has ended, if it failed or is sampled.
    pub(crate) fn offer(&self, request: &Arc<RequestSummary>, context: TraceContext) {
        if !request.is_failed() && !context.is_sampled && !context.is_among(self.share) {
            return;
        }
        let request = FinishedRequest { request: Arc::clone(request), context };
        if self.queue.try_send(request).is_err() {
            count(&self.metrics, "dropped", 1);
        }
    }
}

impl TraceSender {
    /// Sends batches until `stop`, and then what is left of the queue.
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        while stop.run_until_cancelled(self.fill(&mut batch)).await.is_some() {
            self.send(&batch).await;
            batch.clear();
        }
        let flushed = timeout(FLUSH_TIMEOUT, async {
            while let Ok(request) = self.queue.try_recv() {
                batch.push(request);
            }
            for part in batch.chunks(MAX_BATCH) {
                self.send(part).await;
            }
        });
        if flushed.await.is_err() {
            tracing::warn!(timeout = ?FLUSH_TIMEOUT, "the last traces were not sent in time");
        }
    }

    /// Waits for a request, and fills a batch with those that follow soon. Of a cancelled call, what was
    /// taken is in the batch.
    async fn fill(&mut self, batch: &mut Vec<FinishedRequest>) {
        let Some(first) = self.queue.recv().await else { return std::future::pending().await };
        batch.push(first);
        let rest = async {
            while batch.len() < MAX_BATCH {
                match self.queue.recv().await {
                    Some(next) => batch.push(next),
                    None => return,
                }
            }
        };
        // A batch that is not full is sent as it is.
        _ = timeout(BATCH_INTERVAL, rest).await;
    }

    async fn send(&mut self, batch: &[FinishedRequest]) {
        if batch.is_empty() {
            return;
        }
        let body = spans::export(batch, &self.instance).encode_to_vec();
        let sent = timeout(SEND_TIMEOUT, self.post(body)).await;
        let sent = sent.unwrap_or_else(|_| Err(format!("no answer within {SEND_TIMEOUT:?}")));
        let result = if sent.is_ok() { "sent" } else { "failed" };
        count(&self.metrics, result, batch.len() as u64);
        match sent {
            Err(reason) if !self.is_failing => {
                let endpoint = &self.endpoint.authority;
                tracing::warn!(%endpoint, reason, "traces cannot be sent");
            }
            Ok(()) if self.is_failing => tracing::info!("traces are sent again"),
            _ => {}
        }
        self.is_failing = result == "failed";
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), String> {
        let TraceEndpoint { authority, path } = &self.endpoint;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let (method, headers, body) = (Method::POST, &headers, bytes::Bytes::from(body).into());
        let protocol = &Protocol::Http1;
        let request = KnownRequest { protocol, method, path, headers, body, on_written: None };
        let sent = self.http.send_known(authority, request).await;
        let answer = sent.map_err(|error| error.to_string())?;
        let status = answer.status();
        // Read, so that the connection is used again.
        _ = read_body(answer.into_body(), &ReadLimits::size(MAX_ANSWER)).await;
        if status.is_success() { Ok(()) } else { Err(format!("the collector answered {status}")) }
    }
}

fn count(metrics: &Metrics, result: &'static str, by: u64) {
    metrics.traces.get_or_create(&TraceLabels { result }).inc_by(by);
}
