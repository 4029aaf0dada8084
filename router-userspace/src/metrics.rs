//! The metrics of the gateway: names, labels and help texts.

pub(crate) mod exposition;
mod part_histograms;
pub mod process;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use router_core::inner_parts::OF_AGENTS;

use self::exposition::{ProcessCounters, ProcessUse};
use self::part_histograms::TTFT_PARTS;
pub(crate) use self::part_histograms::observe_known;
pub use self::part_histograms::{InnerPartHistograms, PartLabels, TtftParts};

/// One request of a client, and its result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The path of a known endpoint, else `other`.
    pub endpoint: &'static str,
    pub code: u16,
    /// `ok`, or the reason of the failure.
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndpointLabels {
    pub endpoint: &'static str,
}

/// One request to one engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LegLabels {
    /// `prefill`, `decode` or `unified`.
    pub leg: &'static str,
    /// `namespace/pod`.
    pub worker: String,
    /// `ok`, or the reason of the failure. Cancelled requests are not counted.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FeedbackLabels {
    /// Why an agent's stream ended, or why a record was skipped.
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// `joined`: to a request of this gateway, or `unmatched`.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TraceLabels {
    /// `sent`, `failed`: the collector did not take them, or `dropped`: too many wait.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AbortLabels {
    /// `sent`, `failed`, or `dropped`: too many at once, or the request has no id at the engine.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WorkerLabels {
    pub pool: String,
    pub worker: String,
    pub role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    pub pool: String,
}

type LatencyFamily = Family<EndpointLabels, Histogram, fn() -> Histogram>;

/// The gateway's metrics; cheap to clone into every task.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub request_duration: LatencyFamily,
    pub time_to_first_token: LatencyFamily,
    pub ttft_parts: TtftParts,
    pub inner_parts: InnerPartHistograms,
    pub inter_token_latency: LatencyFamily,
    pub in_flight: Gauge,
    pub queued: Gauge,
    pub legs: Family<LegLabels, Counter>,
    pub retries: Family<ReasonLabels, Counter>,
    pub retry_budget_exhausted: Counter,
    pub aborts: Family<AbortLabels, Counter>,
    pub mirrors_dropped: Family<ReasonLabels, Counter>,
    pub connections: Gauge,
    pub config_problems: Gauge,
    pub readiness_distrusted: Gauge,
    pub fleet_generation: Gauge,
    pub leader: Gauge,
    pub status_write_failures: Counter,
    pub pool_can_serve: Family<PoolLabels, Gauge>,
    pub worker_up: Family<WorkerLabels, Gauge>,
    pub worker_requests: Family<WorkerLabels, Gauge>,
    pub agents: Gauge,
    pub agents_connected: Gauge,
    pub feedback_frames: Counter,
    pub feedback_errors: Family<FeedbackLabels, Counter>,
    pub feedback_rooms: Family<ResultLabels, Counter>,
    pub traces: Family<TraceLabels, Counter>,
    pub worker_load_age: Family<WorkerLabels, Gauge<f64, AtomicU64>>,
    pub worker_load_score: Family<WorkerLabels, Gauge<f64, AtomicU64>>,
}

/// 1 ms to 10 min: from a cached answer to a long generation.
fn latency() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        120.0, 300.0, 600.0,
    ])
}

/// 0.1 ms to 5 min: from the choice of a pair to a long queue.
fn part() -> Histogram {
    Histogram::new([
        0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 30.0, 60.0, 300.0,
    ])
}

/// Why a request is not mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorDrop {
    TooMany,
    NoMemory,
    Incomplete,
}

impl MirrorDrop {
    const ALL: [MirrorDrop; 3] =
        [MirrorDrop::TooMany, MirrorDrop::NoMemory, MirrorDrop::Incomplete];

    /// The label of the metric.
    pub fn reason(self) -> &'static str {
        match self {
            MirrorDrop::TooMany => "too_many",
            MirrorDrop::NoMemory => "no_memory",
            MirrorDrop::Incomplete => "incomplete",
        }
    }
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Metrics {
        registry.register_collector(Box::new(ProcessUse));
        let registry = registry.sub_registry_with_prefix("pd_router");
        let latencies = || LatencyFamily::new_with_constructor(latency as fn() -> Histogram);
        let metrics = Metrics {
            requests: Family::default(),
            request_duration: latencies(),
            time_to_first_token: latencies(),
            ttft_parts: TtftParts::new(part, TTFT_PARTS),
            inner_parts: InnerPartHistograms::new(part, OF_AGENTS),
            inter_token_latency: latencies(),
            in_flight: Gauge::default(),
            queued: Gauge::default(),
            legs: Family::default(),
            retries: Family::default(),
            retry_budget_exhausted: Counter::default(),
            aborts: Family::default(),
            mirrors_dropped: Family::default(),
            connections: Gauge::default(),
            config_problems: Gauge::default(),
            readiness_distrusted: Gauge::default(),
            fleet_generation: Gauge::default(),
            leader: Gauge::default(),
            status_write_failures: Counter::default(),
            pool_can_serve: Family::default(),
            worker_up: Family::default(),
            worker_requests: Family::default(),
            agents: Gauge::default(),
            agents_connected: Gauge::default(),
            feedback_frames: Counter::default(),
            feedback_errors: Family::default(),
            feedback_rooms: Family::default(),
            traces: Family::default(),
            worker_load_age: Family::default(),
            worker_load_score: Family::default(),
        };
        // At 0 from the start, so that a rate has the first of them.
        for reason in MirrorDrop::ALL.map(MirrorDrop::reason) {
            drop(metrics.mirrors_dropped.get_or_create(&ReasonLabels { reason }));
        }
        for result in ["joined", "unmatched"] {
            drop(metrics.feedback_rooms.get_or_create(&ResultLabels { result }));
        }
        for result in ["sent", "failed", "dropped"] {
            drop(metrics.traces.get_or_create(&TraceLabels { result }));
        }
        metrics.register_requests(registry);
        metrics.register_fleet(registry);
        metrics.register_feedback(registry);
        registry.register_collector(Box::new(ProcessCounters));
        metrics
    }

    fn register_requests(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests answered, by status code and reason",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from the head of a request to the last byte of its response",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "Time from the head of a request to the first event of its streamed response",
            Unit::Seconds,
            self.time_to_first_token.clone(),
        );
        registry.register_with_unit(
            "ttft_part",
            "Part of the time to first token of a streamed response, where it is known",
            Unit::Seconds,
            self.ttft_parts.family.clone(),
        );
        registry.register_with_unit(
            "inter_token_latency",
            "Mean time between the events of one streamed response",
            Unit::Seconds,
            self.inter_token_latency.clone(),
        );
        registry.register("requests_in_flight", "Requests in progress", self.in_flight.clone());
        registry.register(
            "requests_queued",
            "Requests that wait for capacity",
            self.queued.clone(),
        );
        registry.register("leg_requests", "Requests sent to engines", self.legs.clone());
        registry.register(
            "retries",
            "Retries on another pair, by the reason of the failed attempt",
            self.retries.clone(),
        );
        registry.register(
            "retry_budget_exhausted",
            "Requests that were not retried because the retry budget of their pool was used up",
            self.retry_budget_exhausted.clone(),
        );
        registry.register(
            "aborts",
            "Aborts of requests whose client has gone or whose attempt failed",
            self.aborts.clone(),
        );
        registry.register(
            "mirrors_dropped",
            "Requests that were not mirrored although their route names a mirror",
            self.mirrors_dropped.clone(),
        );
        registry.register("connections", "Open client connections", self.connections.clone());
    }

    fn register_fleet(&self, registry: &mut Registry) {
        registry.register(
            "config_problems",
            "Objects and fields that are invalid or unsupported; /fleet lists them",
            self.config_problems.clone(),
        );
        registry.register(
            "readiness_distrusted",
            "Engines that get requests although Kubernetes reports their pods as not ready",
            self.readiness_distrusted.clone(),
        );
        registry.register(
            "fleet_generation",
            "Generation of the current snapshot",
            self.fleet_generation.clone(),
        );
        registry.register(
            "leader",
            "1 if this replica holds the Lease and writes statuses and Services, else 0",
            self.leader.clone(),
        );
        registry.register(
            "status_write_failures",
            "Statuses of cluster objects that could not be written",
            self.status_write_failures.clone(),
        );
        registry.register(
            "pool_can_serve",
            "1 if compatible engines are ready and not down, one of each role, else 0",
            self.pool_can_serve.clone(),
        );
        registry.register(
            "worker_up",
            "1 if the worker is ready, answers probes and its circuit breaker is not open, else 0",
            self.worker_up.clone(),
        );
        registry.register(
            "worker_requests",
            "Requests of this gateway at the worker",
            self.worker_requests.clone(),
        );
    }

    fn register_feedback(&self, registry: &mut Registry) {
        registry.register("agents", "Known agents", self.agents.clone());
        registry.register(
            "agents_connected",
            "Agents whose stream is connected",
            self.agents_connected.clone(),
        );
        registry.register(
            "feedback_frames",
            "Load frames that were applied",
            self.feedback_frames.clone(),
        );
        registry.register(
            "feedback_errors",
            "Agent streams that ended, and records that were skipped",
            self.feedback_errors.clone(),
        );
        registry.register_with_unit(
            "inner_part",
            "Part of a streamed request inside the engines, as agents saw it",
            Unit::Seconds,
            self.inner_parts.family.clone(),
        );
        registry.register(
            "feedback_rooms",
            "Reports of agents about KV transfers, by whether a request of this gateway has the room",
            self.feedback_rooms.clone(),
        );
        registry.register(
            "traces",
            "Requests whose spans were exported, by what became of them",
            self.traces.clone(),
        );
        registry.register_with_unit(
            "worker_load_age",
            "Age of the worker's load; +Inf if no agent has reported it",
            Unit::Seconds,
            self.worker_load_age.clone(),
        );
        registry.register(
            "worker_load_score",
            "Load of the worker as its agent reported it, from 0 (idle) to 1 (saturated)",
            self.worker_load_score.clone(),
        );
    }
}
