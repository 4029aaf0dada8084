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
use router_core::fleet::{
    EngineInfo, Fleet, Health, Member, Phase, Role, Verdict, Worker, WorkerKey,
};
use router_core::sglang::info::RouteParams;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::FollowedWorker;
use super::health_monitor::HealthMonitor;
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
/// Minimum time between two reads of `/server_info` of an engine that fails requests: each interrupts its
/// scheduler.
const MIN_INFO_PAUSE: Duration = Duration::from_secs(2);
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
    /// The engine was away since the worker was up: the process that comes back is another one, with
    /// an empty cache.
    restarted: bool,
    /// When `/server_info` was read last. `None` if it is to be read at the next probe.
    info_at: Option<Instant>,
    /// The role that the engine reported last.
    mode: Option<String>,
}

impl ProbeState {
    /// A request has failed: the engine may have another role.
    fn distrust_info(&mut self) {
        self.info_at = self.info_at.filter(|at| at.elapsed() < MIN_INFO_PAUSE);
    }

    /// Whether the information is to be read, again or for the first time.
    fn wants_info(&self, interval: Duration) -> bool {
        !self.has_info || self.info_at.is_none_or(|at| at.elapsed() >= interval)
    }

    /// Logs a change of the engine's role.
    fn observe_mode(&mut self, worker: &Worker, mode: Option<&str>) {
        if let (Some(before), Some(after)) = (self.mode.as_deref(), mode)
            && before != after
        {
            tracing::warn!(worker = %worker.name, before, after, "engine role changed");
        }
        self.mode = mode.map(str::to_owned).or(self.mode.take());
    }

    /// A probe or a request found the worker down: it may come back as another engine under the same
    /// name.
    fn found_down(&mut self, health: &Health) {
        self.has_info = false;
        // A frozen engine keeps its cache, and so does one whose bootstrap server alone cannot be reached.
        self.restarted |= !health.is_silent() && !health.is_unregistered();
    }
}

/// The bootstrap registry that a probe checks beside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ProbedRegistry {
    /// The worker is no prefill.
    NotNeeded,
    /// The port is not configured, and the engine has not been asked.
    NotKnown,
    At(SocketAddr),
}

impl ProbedRegistry {
    fn of(member: &Member) -> ProbedRegistry {
        match (member.role, member.bootstrap) {
            (Role::Prefill, None) => ProbedRegistry::NotKnown,
            (Role::Prefill, Some(address)) => ProbedRegistry::At(address),
            (Role::Decode | Role::Unified, _) => ProbedRegistry::NotNeeded,
        }
    }
}

/// What a snapshot says of a worker that is probed.
#[derive(Clone, Copy)]
struct ProbeTarget {
    registry: ProbedRegistry,
    /// The worker's pod is ready.
    ready: bool,
}

struct ProbeTask {
    target: ProbeTarget,
    stop: CancellationToken,
    wake: Arc<Notify>,
}

/// One probe task per worker of the fleet.
pub(crate) struct Probes {
    prober: Prober,
    tasks: TaskTracker,
    /// Ends all probe tasks.
    stop: CancellationToken,
    probe_tasks: Mutex<HashMap<FollowedWorker, ProbeTask>>,
}

/// The state that all probe tasks share.
#[derive(Clone)]
pub(crate) struct Prober {
    pub(crate) engines: EngineClient,
    pub(crate) timeouts: TimeoutFlags,
    pub(crate) view: SchedulerView,
    /// Receives the information of an engine.
    pub(crate) engine_info: mpsc::Sender<(WorkerKey, EngineInfo)>,
    pub(crate) health: Arc<HealthMonitor>,
}

impl Probes {
    pub(crate) fn new(prober: Prober, tasks: TaskTracker, stop: CancellationToken) -> Probes {
        Probes { prober, tasks, stop, probe_tasks: Mutex::default() }
    }

    /// Starts the probes of new workers and stops those of removed workers.
    #[expect(clippy::mutable_key_type, reason = "the key is compared by its address")]
    pub(crate) fn follow(&self, fleet: &Fleet) {
        // A worker of two pools is probed once, as the pool wants it that asks for more.
        let mut wanted: HashMap<FollowedWorker, ProbeTarget> = HashMap::new();
        for (_, member) in fleet.members() {
            let (registry, ready) = (ProbedRegistry::of(member), member.phase == Phase::Ready);
            let target = wanted
                .entry(FollowedWorker(Arc::clone(&member.worker)))
                .or_insert(ProbeTarget { registry, ready });
            target.registry = target.registry.max(registry);
            target.ready |= ready;
        }
        let mut probe_tasks = self.probe_tasks.lock();
        let mut now = HashMap::with_capacity(wanted.len());
        for (worker, target) in wanted {
            let task = match probe_tasks.remove(&worker) {
                Some(mut task) if task.target.registry == target.registry => {
                    // The kubelet may see the worker return before the next probe is due.
                    if target.ready && !task.target.ready {
                        task.wake.notify_one();
                    }
                    task.target = target;
                    task
                }
                old => {
                    if let Some(old) = old {
                        old.stop.cancel();
                    }
                    self.start(Arc::clone(&worker.0), target)
                }
            };
            now.insert(worker, task);
        }
        for gone in probe_tasks.values() {
            gone.stop.cancel();
        }
        *probe_tasks = now;
    }

    /// Whether the worker is probed. The endpoints of Services are not.
    pub(crate) fn is_probed(&self, worker: &Arc<Worker>) -> bool {
        self.probe_tasks.lock().contains_key(&FollowedWorker(Arc::clone(worker)))
    }

    /// Probes a worker now instead of at the end of its interval.
    pub(crate) fn probe_now(&self, worker: &Arc<Worker>) {
        let probe_tasks = self.probe_tasks.lock();
        if let Some(task) = probe_tasks.get(&FollowedWorker(Arc::clone(worker))) {
            task.wake.notify_one();
        }
    }

    /// Whether a worker whose connection has broken still answers. It is probed again while
    /// connections break, as they do while a process ends.
    pub(crate) async fn answers(&self, worker: &Worker) -> bool {
        let until = Instant::now() + self.prober.timeouts.probe_timeout;
        loop {
            match self.prober.is_ready(worker).await {
                // A probe that was not sent says nothing against the worker.
                Ok(()) | Err(ProbeFailure::NotSent) => return true,
                Err(ProbeFailure::Broken(_)) if Instant::now() < until => {
                    sleep(ENDING_INTERVAL).await
                }
                Err(_) => return false,
            }
        }
    }

    fn start(&self, worker: Arc<Worker>, target: ProbeTarget) -> ProbeTask {
        let stop = self.stop.child_token();
        let wake = Arc::new(Notify::new());
        let (prober, registry, woken) = (self.prober.clone(), target.registry, Arc::clone(&wake));
        let probing = restarted("probe", move || {
            prober.clone().watch(Arc::clone(&worker), registry, Arc::clone(&woken))
        });
        let stopped = stop.clone();
        self.tasks.spawn(async move { stopped.run_until_cancelled(probing).await });
        ProbeTask { target, stop, wake }
    }
}

impl Prober {
    async fn watch(self, worker: Arc<Worker>, registry: ProbedRegistry, wake: Arc<Notify>) {
        let mut state = ProbeState::default();
        let mut away = DOWN_INTERVAL;
        loop {
            if worker.health.verdict() == Verdict::Down {
                state.found_down(&worker.health);
            }
            self.probe(&worker, registry, &mut state).await;
            let is_up = worker.health.verdict().serves();
            let usual = self.timeouts.probe_interval;
            let pause = if is_up { usual } else { away.min(usual) };
            away = if is_up { DOWN_INTERVAL } else { (2 * away).min(usual) };
            // Jitter, so that a thousand engines are not probed at once.
            let pause = pause.mul_f64(rand::random_range(0.9..=1.1));
            if timeout(pause, wake.notified()).await.is_ok() {
                state.distrust_info();
            }
        }
    }

    async fn probe(&self, worker: &Arc<Worker>, registry: ProbedRegistry, state: &mut ProbeState) {
        let ready = self.is_ready(worker);
        let registered = self.is_registered(registry);
        let (ready, registered) = tokio::join!(ready, registered);
        state.restarted |= matches!(ready, Err(ProbeFailure::Unreachable(_)));
        // The information is read before the worker gets requests, so that the first request finds a
        // compatible pair, and before its registry is found, since it names the registry's port.
        let mut answered = state.has_info;
        if ready.is_ok() && state.wants_info(self.timeouts.engine_info_interval) {
            let read = self.read_info(worker, state).await;
            answered |= read != InfoRead::Failed;
            state.has_info |= read == InfoRead::Done && registry != ProbedRegistry::NotKnown;
        }
        if ready.is_ok() && registry == ProbedRegistry::NotKnown && answered {
            // The next snapshot has the port, and restarts this probe.
            return;
        }
        let passed = ready.is_ok() && registered.is_ok() && registry != ProbedRegistry::NotKnown;
        if passed && std::mem::take(&mut state.restarted) {
            self.view.forget_prefixes(worker);
        }
        let health = &worker.health;
        let (change, reason) = match (ready, registered) {
            (Ok(()), Ok(())) if passed => {
                (health.probe_passed(self.view.clock.now_ms()), "it answers probes".to_owned())
            }
            (Ok(()), Ok(())) => (
                health.probe_failed(),
                "no bootstrap port is configured, and the engine does not answer /server_info"
                    .to_owned(),
            ),
            (Err(failure), _) => {
                let reason = failure.reason("it");
                let change = match failure {
                    ProbeFailure::Unreachable(_) | ProbeFailure::NotReady => health.not_ready(),
                    ProbeFailure::Timeout => health.probe_timed_out(),
                    ProbeFailure::Broken(_) => health.probe_failed(),
                    // Nothing is known about the engine.
                    ProbeFailure::NotSent => None,
                };
                (change, reason)
            }
            (Ok(()), Err(failure)) => {
                let server = match registry {
                    ProbedRegistry::At(address) => format!("its bootstrap server {address}"),
                    ProbedRegistry::NotNeeded | ProbedRegistry::NotKnown => {
                        "its bootstrap server".to_owned()
                    }
                };
                let reason = failure.reason(&server);
                let change = match failure {
                    ProbeFailure::Unreachable(_) => health.bootstrap_refused(),
                    ProbeFailure::NotReady => health.not_ready(),
                    ProbeFailure::Timeout => health.bootstrap_timed_out(),
                    ProbeFailure::Broken(_) => health.probe_failed(),
                    // Nothing is known about the engine.
                    ProbeFailure::NotSent => None,
                };
                (change, reason)
            }
        };
        self.health.observed(worker, change, reason);
    }

    /// `GET /ready`. Any answer but a 503 counts as ready: older engines have no `/ready`, and no
    /// other endpoint that reports readiness without generating a token.
    async fn is_ready(&self, worker: &Worker) -> Result<(), ProbeFailure> {
        let (status, _) = self.get(worker.authority.clone(), READY).await?;
        if status == StatusCode::SERVICE_UNAVAILABLE { Err(ProbeFailure::NotReady) } else { Ok(()) }
    }

    /// Whether all ranks of a prefill are in its bootstrap registry: before that, decode cannot find
    /// them. The query's parameters differ by version; a 400 means that they are another version's.
    async fn is_registered(&self, registry: ProbedRegistry) -> Result<(), ProbeFailure> {
        let ProbedRegistry::At(bootstrap) = registry else { return Ok(()) };
        let authority: Authority = bootstrap
            .to_string()
            .parse()
            .map_err(|_| ProbeFailure::Unreachable("is no address".to_owned()))?;
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

    /// Reads the engine information and passes it on. An engine that refuses to tell has an empty one,
    /// unless it has answered before.
    async fn read_info(&self, worker: &Worker, state: &mut ProbeState) -> InfoRead {
        state.info_at = Some(Instant::now());
        let mut found = (EngineInfo::default(), InfoRead::Done);
        for path in SERVER_INFO {
            match self.get(worker.authority.clone(), path).await {
                // Engines have one of the two paths. The information of one with neither stays unknown.
                Ok((StatusCode::NOT_FOUND, _)) => continue,
                Ok((status, answer)) if status.is_success() => {
                    match EngineInfo::from_server_info(&answer) {
                        Some(info) => found.0 = info,
                        None => return InfoRead::Failed,
                    }
                }
                // It may need a key, and is asked again.
                Ok((status, _)) if status.is_client_error() => found.1 = InfoRead::Refused,
                Ok(_) | Err(_) => return InfoRead::Failed,
            }
            break;
        }
        let (info, read) = found;
        if state.has_info && read == InfoRead::Refused {
            return read;
        }
        state.observe_mode(worker, info.disaggregation_mode.as_deref());
        worker.set_pipeline_stages(info.pp_size);
        let sent = self.engine_info.send((worker.key.clone(), info)).await;
        if sent.is_ok() { read } else { InfoRead::Failed }
    }

    async fn get(
        &self,
        authority: Authority,
        path: PathAndQuery,
    ) -> Result<(StatusCode, Bytes), ProbeFailure> {
        let answer = self.engines.get(authority, path, MAX_PROBE_ANSWER);
        match timeout(self.timeouts.probe_timeout, answer).await {
            Ok(answer) => answer.map_err(|error| match error {
                SendError::Unreachable(why) => ProbeFailure::Unreachable(why),
                SendError::ConnectTimeout(_) => ProbeFailure::Timeout,
                SendError::NoResources(_) => ProbeFailure::NotSent,
                SendError::Broken(why) | SendError::Unread(why) => ProbeFailure::Broken(why),
            }),
            Err(_) => Err(ProbeFailure::Timeout),
        }
    }
}

/// What came of reading an engine's information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InfoRead {
    Done,
    /// The engine answered that it does not tell: it is asked again.
    Refused,
    /// No answer came, or none that can be read: it is asked again.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ProbeFailure {
    Unreachable(String),
    /// The engine answered that it is not ready.
    NotReady,
    Broken(String),
    Timeout,
    /// The gateway itself could not send it.
    NotSent,
}

impl ProbeFailure {
    /// The reason of a change of health, for logs. `server` is who was asked.
    fn reason(&self, server: &str) -> String {
        match self {
            ProbeFailure::Unreachable(why) => format!("{server} cannot be reached: {why}"),
            ProbeFailure::NotReady => format!("{server} reports that it is not ready"),
            ProbeFailure::Broken(why) => format!("{server} closed the connection: {why}"),
            ProbeFailure::Timeout => format!("{server} did not answer in time"),
            ProbeFailure::NotSent => format!("{server} was not asked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_never_left_has_not_restarted() {
        let found = |observe: fn(&Health)| {
            let (health, mut state) = (Health::default(), ProbeState::default());
            observe(&health);
            state.found_down(&health);
            state.restarted
        };
        assert!(!found(|health| _ = health.probe_timed_out()), "it is frozen");
        assert!(!found(|health| _ = health.bootstrap_refused()), "it answers");
        assert!(found(|health| _ = health.unreachable()));
    }
}
