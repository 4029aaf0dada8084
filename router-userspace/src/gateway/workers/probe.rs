//! Probes: asks every worker, cheaply, whether it answers, and once what it is.
//!
//! Never the engine's `/health`: it generates a token and waits up to 20 s on a busy engine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use router_core::fleet::{EngineInfo, Fleet, Phase, Role, Verdict, Worker, WorkerKey};
use router_core::sglang::info::RouteParams;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::TimeoutFlags;
use crate::http_client::{HttpClient, Protocol, SendError, whole};
use crate::scheduler_view::SchedulerView;
use crate::supervise::restarted;

/// Between the first two probes of a worker that is not up, and doubled up to the usual interval: a
/// thousand that are away must not be asked five times a second.
const RETURN_INTERVAL: Duration = Duration::from_millis(200);
/// Between two questions to a process that may be ending.
const ENDING: Duration = Duration::from_millis(20);
/// Largest answer read of a probe; `/server_info` of a large engine is some tens of KB.
const MAX_PROBE_ANSWER: usize = 4 << 20;
const READY: PathAndQuery = PathAndQuery::from_static("/ready");
const SERVER_INFO: [PathAndQuery; 2] =
    [PathAndQuery::from_static("/server_info"), PathAndQuery::from_static("/get_server_info")];

/// What the probes of a worker have seen of its engine.
#[derive(Default)]
struct Seen {
    /// It told what it is.
    told: bool,
    /// Nobody listened since it was up: whoever comes back has another process, and an empty cache.
    gone: bool,
}

/// What the probe of a worker needs beside the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Post {
    role: Role,
    bootstrap: Option<SocketAddr>,
}

struct Watch {
    post: Post,
    /// Its pod is ready.
    ready: bool,
    stop: CancellationToken,
    look: Arc<Notify>,
}

/// One probe task a worker, following the fleet.
pub(crate) struct Probes {
    prober: Prober,
    tasks: TaskTracker,
    /// Ends all of them.
    stop: CancellationToken,
    watches: Mutex<HashMap<WorkerKey, Watch>>,
}

/// What every probe task shares.
#[derive(Clone)]
pub(crate) struct Prober {
    pub(crate) upstream: HttpClient,
    pub(crate) timeouts: TimeoutFlags,
    pub(crate) api_key: Option<HeaderValue>,
    pub(crate) view: SchedulerView,
    /// What an engine told of itself.
    pub(crate) facts: mpsc::Sender<(WorkerKey, EngineInfo)>,
    /// Called when a worker comes back: somebody may wait for it.
    pub(crate) returned: Arc<dyn Fn() + Send + Sync>,
}

impl Probes {
    pub(crate) fn new(prober: Prober, tasks: TaskTracker, stop: CancellationToken) -> Probes {
        Probes { prober, tasks, stop, watches: Mutex::default() }
    }

    /// Starts probes of new workers and stops those of workers that are gone.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let mut watches = self.watches.lock();
        let mut now: HashMap<WorkerKey, Watch> = HashMap::with_capacity(watches.len());
        for member in fleet.pools.iter().flat_map(|pool| &pool.members) {
            let key = &member.worker.key;
            let post = Post { role: member.role, bootstrap: member.bootstrap };
            let ready = member.phase == Phase::Ready;
            match watches.remove(key).or_else(|| now.remove(key)) {
                Some(mut watch) if watch.post == post => {
                    // The kubelet sees it return before its next turn may come.
                    if ready && !watch.ready {
                        watch.look.notify_one();
                    }
                    watch.ready = ready;
                    now.insert(key.clone(), watch);
                }
                old => {
                    if let Some(old) = old {
                        old.stop.cancel();
                    }
                    now.insert(key.clone(), self.start(Arc::clone(&member.worker), post, ready));
                }
            }
        }
        for gone in watches.values() {
            gone.stop.cancel();
        }
        *watches = now;
    }

    /// Looks at a worker now instead of at its next turn.
    pub(crate) fn look(&self, worker: &Worker) {
        let watches = self.watches.lock();
        if let Some(watch) = watches.get(&worker.key) {
            watch.look.notify_one();
        }
    }

    /// Whether a worker whose connection has broken still answers. Asked again while connections
    /// break, as they do while a process ends.
    pub(crate) async fn answers(&self, worker: &Worker) -> bool {
        let until = Instant::now() + self.prober.timeouts.probe_timeout;
        loop {
            match self.prober.is_ready(worker).await {
                Ok(()) => return true,
                Err(Failed::Broken) if Instant::now() < until => sleep(ENDING).await,
                Err(_) => return false,
            }
        }
    }

    fn start(&self, worker: Arc<Worker>, post: Post, ready: bool) -> Watch {
        let stop = self.stop.child_token();
        let look = Arc::new(Notify::new());
        let (prober, asked, wake) = (self.prober.clone(), post.clone(), Arc::clone(&look));
        let watched = restarted("probe", move || {
            prober.clone().watch(Arc::clone(&worker), asked.clone(), Arc::clone(&wake))
        });
        let stopped = stop.clone();
        self.tasks.spawn(async move { stopped.run_until_cancelled(watched).await });
        Watch { post, ready, stop, look }
    }
}

impl Prober {
    async fn watch(self, worker: Arc<Worker>, post: Post, look: Arc<Notify>) {
        let mut seen = Seen::default();
        let mut away = RETURN_INTERVAL;
        loop {
            let before = worker.health.verdict();
            self.probe(&worker, &post, &mut seen).await;
            let now = worker.health.verdict();
            if now != before {
                tracing::info!(worker = %worker.name, ?before, ?now, "worker health");
                if now == Verdict::Up {
                    (self.returned)();
                } else {
                    // It may come back as another engine under the same name.
                    seen.told = false;
                }
            }
            let usual = self.timeouts.probe_interval;
            let pause = if now == Verdict::Up { usual } else { away.min(usual) };
            away = if now == Verdict::Up { RETURN_INTERVAL } else { (2 * away).min(usual) };
            // Spread, so that a thousand engines are not asked at once.
            let pause = pause.mul_f64(rand::random_range(0.9..=1.1));
            let _ = timeout(pause, look.notified()).await;
        }
    }

    async fn probe(&self, worker: &Arc<Worker>, post: &Post, seen: &mut Seen) {
        let ready = self.is_ready(worker);
        let registered = self.is_registered(post);
        let (ready, registered) = tokio::join!(ready, registered);
        seen.gone |= matches!(ready, Err(Failed::Unreachable));
        match (ready, registered) {
            (Ok(()), Ok(())) => {
                // Asked before the worker is let in, so that the first request finds a pair
                // that fits.
                if !seen.told {
                    seen.told = self.learn(worker).await;
                }
                if std::mem::take(&mut seen.gone) {
                    self.view.forget_prefixes(worker);
                }
                worker.health.probe_passed(self.view.clock.now_ms());
            }
            (Err(Failed::Unreachable), _) | (_, Err(Failed::Unreachable)) => {
                worker.health.unreachable();
            }
            (Err(Failed::NotReady), _) | (_, Err(Failed::NotReady)) => worker.health.not_ready(),
            (Err(Failed::Late), _) => worker.health.probe_timed_out(),
            _ => worker.health.probe_failed(),
        }
    }

    /// `/ready` where the engine has it; any other answer shows a server that answers, and
    /// older engines say no more without generating.
    async fn is_ready(&self, worker: &Worker) -> Result<(), Failed> {
        let (status, _) = self.get(worker.authority.clone(), READY).await?;
        if status == StatusCode::SERVICE_UNAVAILABLE { Err(Failed::NotReady) } else { Ok(()) }
    }

    /// Whether all ranks of a prefill are in its bootstrap registry: before that, decode cannot
    /// find them. The parameters differ by version; a 400 only says that these are another's.
    async fn is_registered(&self, post: &Post) -> Result<(), Failed> {
        let (Role::Prefill, Some(bootstrap)) = (post.role, post.bootstrap) else { return Ok(()) };
        let authority: Authority =
            bootstrap.to_string().parse().map_err(|_| Failed::Unreachable)?;
        for form in [RouteParams::Ranks, RouteParams::DpGroup] {
            let path = PathAndQuery::from_static(form.query());
            let (status, answer) = self.get(authority.clone(), path).await?;
            match status {
                StatusCode::SERVICE_UNAVAILABLE => return Err(Failed::NotReady),
                // Engines up to 0.4 answer 200 with nulls before they have registered.
                status if status.is_success() => {
                    return EngineInfo::from_route(&answer).map(|_| ()).ok_or(Failed::NotReady);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks the engine what it is. `false`: ask again.
    async fn learn(&self, worker: &Worker) -> bool {
        for path in SERVER_INFO {
            match self.get(worker.authority.clone(), path).await {
                Ok((StatusCode::NOT_FOUND, _)) => {}
                Ok((status, answer)) if status.is_success() => {
                    let Some(facts) = EngineInfo::from_server_info(&answer) else { return false };
                    return self.facts.send((worker.key.clone(), facts)).await.is_ok();
                }
                Ok(_) | Err(_) => return false,
            }
        }
        // Neither path: an engine that does not tell. It stays unknown.
        true
    }

    async fn get(
        &self,
        authority: Authority,
        path: PathAndQuery,
    ) -> Result<(StatusCode, bytes::Bytes), Failed> {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.api_key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        let call = async {
            let none = whole(bytes::Bytes::new());
            let sent = self
                .upstream
                .send_over(Protocol::Http1, authority, Method::GET, path, headers, none)
                .await;
            let response = sent.map_err(|error| match error {
                SendError::Unreachable(_) => Failed::Unreachable,
                SendError::Unanswered(_) => Failed::Late,
                SendError::Broken(_) | SendError::BodyTooLarge => Failed::Broken,
            })?;
            let status = response.status();
            let answer =
                crate::http_client::read_body(response.into_body(), MAX_PROBE_ANSWER).await;
            Ok((status, answer.map_err(|_| Failed::Broken)?))
        };
        timeout(self.timeouts.probe_timeout, call).await.unwrap_or(Err(Failed::Late))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Unreachable,
    /// It answers that it is not ready.
    NotReady,
    Broken,
    Late,
}
