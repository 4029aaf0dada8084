//! Probes: checks at an interval whether every worker answers, and reads its engine information once.
//!
//! Never the engine's `/health`: it generates a token and waits up to 20 s on a busy engine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::uri::{Authority, PathAndQuery};
use parking_lot::Mutex;
use router_core::fleet::{EngineInfo, Fleet, Phase, Role, Worker, WorkerKey};
use router_core::sglang::info::RouteParams;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::TimeoutFlags;
use crate::gateway::engine_client::EngineClient;
use crate::http_client::SendError;
use crate::scheduler_view::SchedulerView;
use crate::supervise::restarted;

/// Interval of the first probes of a worker that is not up. It doubles up to `--probe-interval`, so
/// that a thousand absent workers are not probed five times a second.
const DOWN_INTERVAL: Duration = Duration::from_millis(200);
/// Interval of the probes of a process that may be ending.
const ENDING_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum size of an answer to a probe, in bytes; `/server_info` of a large engine is some tens of KB.
const MAX_PROBE_ANSWER: usize = 4 << 20;
const READY: PathAndQuery = PathAndQuery::from_static("/ready");
const SERVER_INFO: [PathAndQuery; 2] =
    [PathAndQuery::from_static("/server_info"), PathAndQuery::from_static("/get_server_info")];

/// What the probes know of a worker's engine.
#[derive(Default)]
struct ProbeState {
    /// The engine information was read.
    has_info: bool,
    /// A connection was refused since the worker was up: the process that comes back is another one,
    /// with an empty cache.
    restarted: bool,
}

/// The role of a worker, on which its probes depend.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProbeTarget {
    role: Role,
    bootstrap: Option<SocketAddr>,
}

struct ProbeTask {
    target: ProbeTarget,
    /// The worker's pod is ready.
    ready: bool,
    stop: CancellationToken,
    wake: Arc<Notify>,
}

/// One probe task per worker of the fleet.
pub(crate) struct Probes {
    prober: Prober,
    tasks: TaskTracker,
    /// Ends all probe tasks.
    stop: CancellationToken,
    probe_tasks: Mutex<HashMap<WorkerKey, ProbeTask>>,
}

/// The state that all probe tasks share.
#[derive(Clone)]
pub(crate) struct Prober {
    pub(crate) engines: EngineClient,
    pub(crate) timeouts: TimeoutFlags,
    pub(crate) view: SchedulerView,
    /// Receives the information of an engine.
    pub(crate) engine_info: mpsc::Sender<(WorkerKey, EngineInfo)>,
    /// Called when a worker comes back: requests may wait for it.
    pub(crate) returned: Arc<dyn Fn() + Send + Sync>,
}

impl Probes {
    pub(crate) fn new(prober: Prober, tasks: TaskTracker, stop: CancellationToken) -> Probes {
        Probes { prober, tasks, stop, probe_tasks: Mutex::default() }
    }

    /// Starts the probes of new workers and stops those of removed workers.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let mut probe_tasks = self.probe_tasks.lock();
        let mut now: HashMap<WorkerKey, ProbeTask> = HashMap::with_capacity(probe_tasks.len());
        for member in fleet.pools.iter().flat_map(|pool| &pool.members) {
            let key = &member.worker.key;
            let target = ProbeTarget { role: member.role, bootstrap: member.bootstrap };
            let ready = member.phase == Phase::Ready;
            match probe_tasks.remove(key).or_else(|| now.remove(key)) {
                Some(mut task) if task.target == target => {
                    // The kubelet may see the worker return before the next probe is due.
                    if ready && !task.ready {
                        task.wake.notify_one();
                    }
                    task.ready = ready;
                    now.insert(key.clone(), task);
                }
                old => {
                    if let Some(old) = old {
                        old.stop.cancel();
                    }
                    now.insert(key.clone(), self.start(Arc::clone(&member.worker), target, ready));
                }
            }
        }
        for gone in probe_tasks.values() {
            gone.stop.cancel();
        }
        *probe_tasks = now;
    }

    /// Whether the worker is probed. The endpoints of Services are not.
    pub(crate) fn is_probed(&self, worker: &Worker) -> bool {
        self.probe_tasks.lock().contains_key(&worker.key)
    }

    /// Probes a worker now instead of at the end of its interval.
    pub(crate) fn probe_now(&self, worker: &Worker) {
        let probe_tasks = self.probe_tasks.lock();
        if let Some(task) = probe_tasks.get(&worker.key) {
            task.wake.notify_one();
        }
    }

    /// Whether a worker whose connection has broken still answers. It is probed again while
    /// connections break, as they do while a process ends.
    pub(crate) async fn answers(&self, worker: &Worker) -> bool {
        let until = Instant::now() + self.prober.timeouts.probe_timeout;
        loop {
            match self.prober.is_ready(worker).await {
                Ok(()) => return true,
                Err(ProbeFailure::Broken) if Instant::now() < until => sleep(ENDING_INTERVAL).await,
                Err(_) => return false,
            }
        }
    }

    fn start(&self, worker: Arc<Worker>, target: ProbeTarget, ready: bool) -> ProbeTask {
        let stop = self.stop.child_token();
        let wake = Arc::new(Notify::new());
        let (prober, of_worker, woken) = (self.prober.clone(), target.clone(), Arc::clone(&wake));
        let probing = restarted("probe", move || {
            prober.clone().watch(Arc::clone(&worker), of_worker.clone(), Arc::clone(&woken))
        });
        let stopped = stop.clone();
        self.tasks.spawn(async move { stopped.run_until_cancelled(probing).await });
        ProbeTask { target, ready, stop, wake }
    }
}

impl Prober {
    async fn watch(self, worker: Arc<Worker>, target: ProbeTarget, wake: Arc<Notify>) {
        let mut state = ProbeState::default();
        let mut away = DOWN_INTERVAL;
        loop {
            let before = worker.health.verdict();
            self.probe(&worker, &target, &mut state).await;
            let now = worker.health.verdict();
            if now != before {
                tracing::info!(worker = %worker.name, ?before, ?now, "worker health changed");
                if now.serves() {
                    (self.returned)();
                } else {
                    // The worker may come back as another engine under the same name.
                    state.has_info = false;
                }
            }
            let usual = self.timeouts.probe_interval;
            let pause = if now.serves() { usual } else { away.min(usual) };
            away = if now.serves() { DOWN_INTERVAL } else { (2 * away).min(usual) };
            // Jitter, so that a thousand engines are not probed at once.
            let pause = pause.mul_f64(rand::random_range(0.9..=1.1));
            let _ = timeout(pause, wake.notified()).await;
        }
    }

    async fn probe(&self, worker: &Arc<Worker>, target: &ProbeTarget, state: &mut ProbeState) {
        let ready = self.is_ready(worker);
        let registered = self.is_registered(target);
        let (ready, registered) = tokio::join!(ready, registered);
        state.restarted |= matches!(ready, Err(ProbeFailure::Unreachable));
        match (ready, registered) {
            (Ok(()), Ok(())) => {
                // The information is read before the worker gets requests, so that the first request
                // finds a compatible pair.
                if !state.has_info {
                    state.has_info = self.read_info(worker).await;
                }
                if std::mem::take(&mut state.restarted) {
                    self.view.forget_prefixes(worker);
                }
                worker.health.probe_passed(self.view.clock.now_ms());
            }
            (Err(ProbeFailure::Unreachable), _) | (_, Err(ProbeFailure::Unreachable)) => {
                worker.health.unreachable();
            }
            (Err(ProbeFailure::NotReady), _) | (_, Err(ProbeFailure::NotReady)) => {
                worker.health.not_ready()
            }
            (Err(ProbeFailure::Timeout), _) => worker.health.probe_timed_out(),
            _ => worker.health.probe_failed(),
        }
    }

    /// `GET /ready`. Any answer but a 503 counts as ready: older engines have no `/ready`, and no
    /// other endpoint that reports readiness without generating a token.
    async fn is_ready(&self, worker: &Worker) -> Result<(), ProbeFailure> {
        let (status, _) = self.get(worker.authority.clone(), READY).await?;
        if status == StatusCode::SERVICE_UNAVAILABLE { Err(ProbeFailure::NotReady) } else { Ok(()) }
    }

    /// Whether all ranks of a prefill are in its bootstrap registry: before that, decode cannot find
    /// them. The query's parameters differ by version; a 400 means that they are another version's.
    async fn is_registered(&self, target: &ProbeTarget) -> Result<(), ProbeFailure> {
        let (Role::Prefill, Some(bootstrap)) = (target.role, target.bootstrap) else {
            return Ok(());
        };
        let authority: Authority =
            bootstrap.to_string().parse().map_err(|_| ProbeFailure::Unreachable)?;
        for form in [RouteParams::Ranks, RouteParams::DpGroup] {
            let path = PathAndQuery::from_static(form.query());
            let (status, answer) = self.get(authority.clone(), path).await?;
            match status {
                StatusCode::SERVICE_UNAVAILABLE => return Err(ProbeFailure::NotReady),
                // Engines up to 0.4 answer 200 with nulls before they have registered.
                status if status.is_success() => {
                    return EngineInfo::from_route(&answer)
                        .map(|_| ())
                        .ok_or(ProbeFailure::NotReady);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the engine information. Returns false if it is to be read again.
    async fn read_info(&self, worker: &Worker) -> bool {
        for path in SERVER_INFO {
            match self.get(worker.authority.clone(), path).await {
                Ok((StatusCode::NOT_FOUND, _)) => {}
                Ok((status, answer)) if status.is_success() => {
                    let Some(info) = EngineInfo::from_server_info(&answer) else { return false };
                    return self.engine_info.send((worker.key.clone(), info)).await.is_ok();
                }
                Ok(_) | Err(_) => return false,
            }
        }
        // The engine has neither path: its information stays unknown.
        true
    }

    async fn get(
        &self,
        authority: Authority,
        path: PathAndQuery,
    ) -> Result<(StatusCode, Bytes), ProbeFailure> {
        let answer = self.engines.get(authority, path, MAX_PROBE_ANSWER);
        match timeout(self.timeouts.probe_timeout, answer).await {
            Ok(answer) => answer.map_err(|error| match error {
                SendError::Unreachable(_) => ProbeFailure::Unreachable,
                SendError::ConnectTimeout(_) => ProbeFailure::Timeout,
                SendError::Broken(_) | SendError::BodyTooLarge | SendError::ClientBody(_) => {
                    ProbeFailure::Broken
                }
            }),
            Err(_) => Err(ProbeFailure::Timeout),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeFailure {
    Unreachable,
    /// The engine answered that it is not ready.
    NotReady,
    Broken,
    Timeout,
}
