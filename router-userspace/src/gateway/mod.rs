//! The gateway: listeners, the life of a request, and the state that requests share.
//!
//! Reading order: `server/listener` (connections), `request/handle` (one request), `request/generate`
//! (admission, attempts and retries), `placement` (which pair), `upstream/dispatch` (both legs of one
//! attempt), `request/relay` (the stream back). `request/reject` and `upstream/fault` have every way to
//! fail. `workers` probes and polls the engines. This file puts all of them together.

mod admin;
mod engine_client;
mod fleet_handle;
mod peers;
mod placement;
mod readiness;
mod request;
mod server;
mod shared;
mod timeline;
mod traces;
mod upstream;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use router_core::fleet::{EngineInfo, Fleet, ListenPort, WorkerKey};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admin::watch::FleetWatch;
use self::admin::{Admin, AdminState};
use self::engine_client::EngineClient;
pub use self::fleet_handle::FleetHandle;
use self::peers::GatewayPeers;
use self::placement::queue::Admission;
use self::placement::responses::Responses;
use self::readiness::Readiness;
use self::request::content_coding::BodyDecoder;
use self::request::crash_history::CrashHistory;
use self::request::handle::RequestService;
#[cfg(any(test, fuzzing))]
pub use self::request::laws::{coding, head};
use self::request::mirror::Mirrors;
use self::request::shared_answers::SharedAnswers;
use self::server::listener::Listeners;
use self::shared::Gateway;
use self::timeline::recent::RecentRequests;
use self::traces::TraceExporter;
use self::upstream::abort::Aborter;
use self::upstream::dispatch::Dispatch;
use self::workers::engine_load::{LoadPoller, LoadPolls};
use self::workers::health_monitor::HealthMonitor;
use self::workers::probe::{Prober, Probes};
use crate::certificates::Certificates;
use crate::clock::MonotonicClock;
use crate::config::{GatewaySettings, SourceFlags};
use crate::control;
use crate::feedback::{SubscriberContext, Subscriptions};
use crate::http_client::HttpClient;
use crate::http_client::collector::BodyMemory;
use crate::http_client::response::ReadLimits;
use crate::metrics::Metrics;
use crate::rooms::RoomRegistry;
use crate::scheduler_view::SchedulerView;
use crate::supervise::Supervisor;

/// Maximum number of engine infos that wait for the next snapshot. Beyond it, probes wait.
const MAX_ENGINE_INFOS: usize = 1024;
/// Time for background tasks to end after the last client was served.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval at which a drain logs what it waits for.
const DRAIN_REPORT: Duration = Duration::from_secs(60);
/// Interval at which opening a port is retried.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is cancelled, then lets running requests finish for up to
/// `--drain-timeout`.
///
/// # Errors
/// At the start, the manifests cannot be read, or the admin port or the only port cannot be opened.
pub async fn run(settings: GatewaySettings, shutdown: CancellationToken) -> Result<()> {
    log_start(&settings);
    crate::open_files::raise_limit(settings.limits.max_connections);
    if settings.source.pd_disaggregation && settings.http.cors_allowed_origins.is_empty() {
        tracing::warn!("every web page may call this gateway; set --cors-allowed-origins");
    }
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let feed = control::Feed::open(&settings.source, &metrics).await?;
    let admin_listen = settings.admin_listen;
    let guard = Arc::clone(&settings.admin_guard);
    let only_port = only_port(&settings);
    let drain_timeout = settings.timeouts.drain_timeout;
    let parts = Parts::new(settings, metrics, &shutdown)?;
    let admin = Admin::bind(admin_listen).await;
    let admin = admin.with_context(|| format!("--admin-listen {admin_listen}"))?;
    let stop = CancellationToken::new();
    let background = TaskTracker::new();
    let supervisor = Supervisor::new(shutdown.clone());
    background.spawn(supervisor.clone().essential(
        "admin port",
        admin.run(
            AdminState {
                readiness: Arc::clone(&parts.readiness),
                gateway: Arc::clone(&parts.gateway),
                registry: Arc::new(Mutex::new(registry)),
                guard,
                watch: Arc::new(FleetWatch::new(shutdown.clone())),
            },
            stop.clone(),
        ),
    ));
    let (publish, ports) = parts.publisher();
    let stopped = stop.clone().cancelled_owned();
    let control = control::run(feed, parts.engine_info, publish, stopped);
    background.spawn(supervisor.clone().essential("control", control));
    let listeners =
        Listeners::new(&parts.gateway.settings, RequestService(Arc::clone(&parts.gateway)));
    let listeners = follow_ports(listeners, ports, &parts.readiness, &only_port, &shutdown).await?;

    if !drain(&listeners, drain_timeout, &parts.gateway.metrics).await {
        tracing::warn!(?drain_timeout, "drain timeout exceeded, aborting remaining requests");
        parts.gateway.dispatch.drain_exceeded.cancel();
        listeners.drain(CLEANUP_TIMEOUT).await;
    }
    stop.cancel();
    parts.stop_workers.cancel();
    parts.tasks.close();
    background.close();
    // The remaining tasks send aborts and read the rest of prefill answers.
    let cleanup = async { tokio::join!(parts.tasks.wait(), background.wait()) };
    if tokio::time::timeout(CLEANUP_TIMEOUT, cleanup).await.is_err() {
        tracing::debug!(timeout = ?CLEANUP_TIMEOUT, "cleanup timeout exceeded, ending background tasks");
    }
    tracing::info!("drained");
    match supervisor.failed() {
        Some(task) => Err(anyhow::anyhow!("the task `{task}` panicked")),
        None => Ok(()),
    }
}

/// Waits for running requests for up to `limit`, and logs every minute what it waits for. Returns whether all
/// have ended.
async fn drain(listeners: &Listeners, limit: Duration, metrics: &Metrics) -> bool {
    let drained = listeners.drain(limit);
    tokio::pin!(drained);
    let mut report = tokio::time::interval(DRAIN_REPORT);
    loop {
        tokio::select! {
            _ = report.tick() => {
                let (requests, connections) = (metrics.in_flight.get(), metrics.connections.get());
                tracing::info!(requests, connections, ?limit, "draining");
            }
            all = &mut drained => return all,
        }
    }
}

/// Logs the version that runs and the settings that an operator asks for first.
fn log_start(settings: &GatewaySettings) {
    let source = match &settings.source {
        flags if flags.kubernetes => "kubernetes".to_owned(),
        SourceFlags { manifests: Some(path), .. } => format!("manifests {}", path.display()),
        _ => "flags".to_owned(),
    };
    let (limits, policy) = (&settings.limits, settings.policy.as_str());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = crate::COMMIT,
        source,
        policy,
        max_connections = limits.max_connections,
        max_body_memory = limits.max_body_memory,
        max_response_memory = limits.max_response_memory,
        "gateway started"
    );
}

/// The flags of the port without which there is nothing to serve: with flags only, there is one.
fn only_port(settings: &GatewaySettings) -> Option<String> {
    let (host, port) = (settings.source.host, settings.source.port);
    settings.source.pd_disaggregation.then(|| format!("--host {host} --port {port}"))
}

/// The parts that [`run`] puts together before it serves.
struct Parts {
    gateway: Arc<Gateway>,
    probes: Arc<Probes>,
    polls: Arc<LoadPolls>,
    readiness: Arc<Readiness>,
    engine_info: mpsc::Receiver<(WorkerKey, EngineInfo)>,
    tasks: TaskTracker,
    /// Ends the probes, the load polls and the streams of the agents.
    stop_workers: CancellationToken,
}

impl Parts {
    fn new(
        settings: GatewaySettings,
        metrics: Metrics,
        shutdown: &CancellationToken,
    ) -> Result<Parts> {
        let (fleet, clock) = (Arc::new(FleetHandle::default()), MonotonicClock::start());
        let (tasks, stop_workers) = (TaskTracker::new(), CancellationToken::new());
        let http = HttpClient::new(&settings);
        let engines = EngineClient::new(http.clone(), settings.engine_api_key.clone());
        let (limits, timeouts) = (settings.limits.clone(), settings.timeouts.clone());
        let view = SchedulerView::new(settings.policy, clock, timeouts.engine_load_interval);
        let view = view.with_objective(settings.aim);
        let admission =
            Admission::new(Arc::clone(&fleet), view.clone(), limits, timeouts.queue_timeout);
        let (info_tx, engine_info) = mpsc::channel(MAX_ENGINE_INFOS);
        let waker = Arc::clone(&admission);
        let returned = move || waker.wake();
        let health = Arc::new(HealthMonitor::new(Arc::clone(&fleet), clock, returned));
        let prober = Prober {
            engines: engines.clone(),
            timeouts: timeouts.clone(),
            view: view.clone(),
            engine_info: info_tx,
            health: Arc::clone(&health),
        };
        let probes = Arc::new(Probes::new(prober, tasks.clone(), stop_workers.clone()));
        let polls = polls(&settings, &engines, clock, &tasks, &stop_workers);
        let rooms = RoomRegistry::default();
        let subscriber = SubscriberContext::new(&settings, &http, view, &metrics, &rooms);
        let feedback = Subscriptions::new(subscriber, tasks.clone(), &stop_workers)
            .context("cannot start the feedback thread")?;
        let dispatch = Arc::new(Dispatch {
            aborter: Aborter::new(engines.clone(), tasks.clone(), metrics.clone()),
            engines,
            probes: Arc::clone(&probes),
            health,
            tasks: tasks.clone(),
            response_limits: response_limits(&settings),
            timeouts,
            clock,
            rooms,
            metrics: metrics.clone(),
            drain_exceeded: CancellationToken::new(),
        });
        let crashes = Arc::new(CrashHistory::new(Arc::clone(&settings.admin_guard)));
        let readiness = Arc::new(Readiness::new(Arc::clone(&fleet), shutdown.clone()));
        let gateway = Arc::new(Gateway {
            traces: TraceExporter::start(&settings.traces, &http, &metrics, &tasks, &stop_workers),
            recent: Arc::new(RecentRequests::new(&settings.recent)),
            mirrors: Mirrors::new(&settings.limits.mirrors, tasks.clone(), stop_workers.clone()),
            body_memory: BodyMemory::new(settings.limits.max_body_memory),
            peers: peers(&settings, &http, &crashes, &tasks, &stop_workers),
            crashes,
            settings,
            http,
            fleet,
            admission,
            dispatch,
            metrics,
            feedback,
            body_decoder: BodyDecoder::new(),
            responses: Responses::default(),
            shared_answers: SharedAnswers::default(),
        });
        Ok(Parts { gateway, probes, polls, readiness, engine_info, tasks, stop_workers })
    }

    /// Returns the function that publishes a snapshot, and the ports that snapshots want open.
    fn publisher(
        &self,
    ) -> (impl Fn(Fleet, Certificates) + Send + Sync + 'static, watch::Receiver<Vec<ListenPort>>)
    {
        let (ports, wanted) = watch::channel(Vec::new());
        let (gateway, probes) = (Arc::clone(&self.gateway), Arc::clone(&self.probes));
        let polls = Arc::clone(&self.polls);
        let publish = move |fleet: Fleet, certificates: Certificates| {
            gateway.metrics.config_problems.set(count(fleet.problems.len()));
            gateway.metrics.readiness_distrusted.set(count(fleet.distrusted.len()));
            gateway.metrics.fleet_generation.set(count(fleet.generation as usize));
            let wanted = fleet.ports();
            probes.follow(&fleet);
            polls.follow(&fleet);
            gateway.feedback.follow(&fleet);
            if let Some(peers) = &gateway.peers {
                peers.follow(&fleet);
            }
            gateway.http.follow(&fleet);
            gateway.remove_counters_of_departed(&fleet);
            gateway.metrics.ttft_parts.follow(fleet.pools.iter().map(|pool| &pool.name));
            gateway.metrics.inner_parts.follow(fleet.pools.iter().map(|pool| &pool.name));
            gateway.record_serving_pools();
            gateway.fleet.publish(fleet, certificates);
            gateway.dispatch.health.retain_workers_of(&gateway.fleet.snapshot());
            gateway.dispatch.health.check_pools(&gateway.fleet.snapshot());
            gateway.admission.wake();
            ports.send_if_modified(|ports| {
                let changed = *ports != wanted;
                *ports = wanted;
                changed
            });
        };
        (publish, wanted)
    }
}

fn response_limits(settings: &GatewaySettings) -> ReadLimits {
    ReadLimits {
        size: settings.limits.max_response,
        idle: Some(settings.timeouts.stream_idle_timeout),
        memory: Some(BodyMemory::new(settings.limits.max_response_memory)),
    }
}

/// The other gateways, with whom this one shares a token. Without a token, no hash would match.
fn peers(
    settings: &GatewaySettings,
    client: &HttpClient,
    crashes: &Arc<CrashHistory>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Option<GatewayPeers> {
    let guard = Arc::clone(&settings.admin_guard);
    let (crashes, peers) = (Arc::clone(crashes), settings.peers.clone());
    let peers =
        || GatewayPeers::new(client.clone(), guard, crashes, peers, tasks.clone(), stop.clone());
    settings.admin_guard.needs_token().then(peers)
}

fn polls(
    settings: &GatewaySettings,
    engines: &EngineClient,
    clock: MonotonicClock,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Arc<LoadPolls> {
    let poller = LoadPoller {
        engines: engines.clone(),
        clock,
        interval: settings.timeouts.engine_load_interval,
        timeout: settings.timeouts.probe_timeout,
    };
    Arc::new(LoadPolls::new(poller, tasks.clone(), stop.clone()))
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Opens and closes listeners as `ports` changes, until `shutdown`.
///
/// # Errors
/// The port that the flags of `only_port` name cannot be opened.
async fn follow_ports(
    mut listeners: Listeners,
    mut ports: watch::Receiver<Vec<ListenPort>>,
    readiness: &Readiness,
    only_port: &Option<String>,
    shutdown: &CancellationToken,
) -> Result<Listeners> {
    loop {
        let wanted = ports.borrow_and_update().clone();
        let failed: Vec<String> = listeners
            .reconcile(&wanted)
            .into_iter()
            .map(|(port, error)| format!("port {port} cannot be opened: {error}"))
            .collect();
        if let (Some(flags), Some(failure)) = (only_port, failed.first()) {
            anyhow::bail!("{flags}: {failure}");
        }
        let retry = !failed.is_empty();
        {
            let mut ports = readiness.ports.lock();
            ports.open = listeners.ports();
            if ports.failures != failed {
                for failure in &failed {
                    tracing::error!("{failure}");
                }
                ports.failures = failed;
            }
        }
        tokio::select! {
            changed = ports.changed() => if changed.is_err() {
                // The control plane has ended: open ports stay open.
                shutdown.cancelled().await;
                return Ok(listeners);
            },
            () = tokio::time::sleep(BIND_RETRY), if retry => {}
            () = shutdown.cancelled() => return Ok(listeners),
        }
    }
}
