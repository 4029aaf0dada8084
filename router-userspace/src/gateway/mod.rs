//! The gateway: listeners, the life of a request, and what it shares.
//!
//! Reading order: [`handle`] (a request's life), `generate` (admission and attempts), `dispatch`
//! (both legs of one attempt), `relay` (the stream back). `admit`, `probe` and `abort` serve them;
//! `reject` and `fault` name every way to fail.

mod admin;
mod fleet_handle;
mod placement;
mod readiness;
mod request;
mod server;
mod shared;
mod upstream;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use router_core::fleet::{EngineInfo, Fleet, ListenPort, WorkerKey};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admin::{Admin, AdminState};
pub use self::fleet_handle::FleetHandle;
use self::placement::queue::Admission;
use self::readiness::Readiness;
use self::request::handle::Service;
use self::request::responses::Responses;
use self::server::listener::Listeners;
use self::shared::Gateway;
use self::upstream::abort::Aborter;
use self::upstream::dispatch::Dispatch;
use self::workers::engine_load::{Poller, Polls};
use self::workers::probe::{Prober, Probes};
use crate::certificates::Certificates;
use crate::clock::Clock;
use crate::config::Settings;
use crate::control;
use crate::feedback::{SubscriberContext, Subscriptions};
use crate::http_client::HttpClient;
use crate::metrics::Metrics;
use crate::scheduler_view::SchedulerView;
use crate::supervise::Supervisor;

/// Maximum number of engine infos that wait for the next snapshot. Beyond it, probes wait.
const MAX_FACTS: usize = 1024;
/// For tasks that only tidy up, once all clients have been served.
const TIDY_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two tries to open a port that is taken.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is cancelled, then lets running requests finish.
///
/// # Errors
/// Where the manifests or the admin port cannot be opened at the start.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let feed = control::Feed::open(&settings.source).await?;
    let admin_listen = settings.admin_listen;
    let guard = Arc::clone(&settings.admin_guard);
    let drain_timeout = settings.timeouts.drain_timeout;
    let parts = Parts::new(settings, metrics, &shutdown)?;
    let admin = Admin::bind(admin_listen).await.context("--admin-listen")?;
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
            },
            stop.clone(),
        ),
    ));
    let (publish, ports) = parts.publisher();
    let stopped = stop.clone().cancelled_owned();
    let followed = control::run(feed, parts.facts, publish, stopped);
    background.spawn(supervisor.clone().essential("control", followed));
    let listeners = Listeners::new(&parts.gateway.settings, Service(Arc::clone(&parts.gateway)));
    let listeners = follow_ports(listeners, ports, &parts.readiness, &shutdown).await;

    tracing::info!("draining");
    if !listeners.drain(drain_timeout).await {
        tracing::warn!("--drain-timeout {drain_timeout:?} is over: what still runs is cut");
        parts.gateway.dispatch.cut.cancel();
        listeners.drain(TIDY_TIMEOUT).await;
    }
    stop.cancel();
    parts.probing.cancel();
    parts.tasks.close();
    background.close();
    // What is left tidies up: aborts on their way, answers being drained.
    let tidy = async { tokio::join!(parts.tasks.wait(), background.wait()) };
    if tokio::time::timeout(TIDY_TIMEOUT, tidy).await.is_err() {
        tracing::debug!("some background tasks were cut short");
    }
    tracing::info!("drained");
    match supervisor.failed() {
        Some(task) => Err(anyhow::anyhow!("the task `{task}` panicked")),
        None => Ok(()),
    }
}

/// What [`run`] puts together before it serves.
struct Parts {
    gateway: Arc<Gateway>,
    probes: Arc<Probes>,
    polls: Arc<Polls>,
    readiness: Arc<Readiness>,
    facts: mpsc::Receiver<(WorkerKey, EngineInfo)>,
    tasks: TaskTracker,
    probing: CancellationToken,
}

impl Parts {
    fn new(settings: Settings, metrics: Metrics, shutdown: &CancellationToken) -> Result<Parts> {
        let fleet = Arc::new(FleetHandle::default());
        let clock = Clock::start();
        let tasks = TaskTracker::new();
        let probing = CancellationToken::new();
        let upstream = HttpClient::new(&settings);
        let (limits, timeouts) = (settings.limits.clone(), settings.timeouts.clone());
        let view = SchedulerView::new(settings.policy, clock, timeouts.engine_load_interval);
        let view = view.aiming_at(settings.aim);
        let admission =
            Admission::new(Arc::clone(&fleet), view.clone(), limits, timeouts.queue_timeout);
        let (told, facts) = mpsc::channel(MAX_FACTS);
        let waker = Arc::clone(&admission);
        let prober = Prober {
            upstream: upstream.clone(),
            timeouts: timeouts.clone(),
            api_key: settings.engine_api_key.clone(),
            view: view.clone(),
            facts: told,
            returned: Arc::new(move || waker.wake()),
        };
        let probes = Arc::new(Probes::new(prober, tasks.clone(), probing.clone()));
        let polls = polls(&settings, &upstream, clock, &tasks, &probing);
        let subscriber = SubscriberContext::new(&settings, &upstream, view, &metrics);
        let feedback = Subscriptions::new(subscriber, tasks.clone(), &probing)
            .context("cannot start the feedback thread")?;
        let key = settings.engine_api_key.clone();
        let dispatch = Arc::new(Dispatch {
            aborter: Aborter::new(upstream.clone(), key, tasks.clone(), metrics.clone()),
            upstream,
            probes: Arc::clone(&probes),
            tasks: tasks.clone(),
            timeouts,
            max_answer: settings.limits.max_answer,
            clock,
            metrics: metrics.clone(),
            cut: CancellationToken::new(),
        });
        let readiness = Arc::new(Readiness::new(Arc::clone(&fleet), shutdown.clone()));
        let body_memory = Arc::new(Semaphore::new(settings.limits.max_body_memory));
        let gateway = Arc::new(Gateway {
            settings,
            fleet,
            admission,
            dispatch,
            metrics,
            feedback,
            body_memory,
            responses: Responses::default(),
        });
        Ok(Parts { gateway, probes, polls, readiness, facts, tasks, probing })
    }

    /// What is done with a new snapshot, and the ports that it wants open.
    fn publisher(
        &self,
    ) -> (impl Fn(Fleet, Certificates) + Send + Sync + 'static, watch::Receiver<Vec<ListenPort>>)
    {
        let (ports, wanted) = watch::channel(Vec::new());
        let (gateway, probes) = (Arc::clone(&self.gateway), Arc::clone(&self.probes));
        let polls = Arc::clone(&self.polls);
        let publish = move |fleet: Fleet, certificates: Certificates| {
            gateway.metrics.config_problems.set(count(fleet.problems.len()));
            gateway.metrics.fleet_generation.set(count(fleet.generation as usize));
            let now = fleet.ports();
            probes.follow(&fleet);
            polls.follow(&fleet);
            gateway.feedback.follow(&fleet);
            gateway.forget_departed(&fleet);
            gateway.fleet.publish(fleet, certificates);
            gateway.admission.wake();
            ports.send_if_modified(|ports| {
                let changed = *ports != now;
                *ports = now;
                changed
            });
        };
        (publish, wanted)
    }
}

fn polls(
    settings: &Settings,
    upstream: &HttpClient,
    clock: Clock,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Arc<Polls> {
    let poller = Poller {
        upstream: upstream.clone(),
        api_key: settings.engine_api_key.clone(),
        clock,
        interval: settings.timeouts.engine_load_interval,
        patience: settings.timeouts.probe_timeout,
    };
    Arc::new(Polls::new(poller, tasks.clone(), stop.clone()))
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Opens and closes listeners as `ports` changes, until `shutdown`.
async fn follow_ports(
    mut listeners: Listeners,
    mut ports: watch::Receiver<Vec<ListenPort>>,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> Listeners {
    loop {
        let wanted = ports.borrow_and_update().clone();
        let failed: Vec<String> = listeners
            .reconcile(&wanted)
            .into_iter()
            .map(|(port, error)| format!("port {port} cannot be opened: {error}"))
            .collect();
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
                // The control plane ended: what is open stays open.
                shutdown.cancelled().await;
                return listeners;
            },
            () = tokio::time::sleep(BIND_RETRY), if retry => {}
            () = shutdown.cancelled() => return listeners,
        }
    }
}
