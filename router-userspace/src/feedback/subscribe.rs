//! The gateway's side: one subscription to each agent, kept up whatever the agent does.
//!
//! An agent that is slow, dead, lying or flooding costs what its limits say and no more: its
//! pods' loads go stale, and requests are served on what is known.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::{Mutex, MutexGuard, RwLock};
use router_core::fleet::{AgentAddress, Fleet};
use router_core::frame::{self, PodRecord};
use serde::Serialize;
use tokio::task::AbortHandle;
use tokio::time::{self, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::ear::Ear;
use super::ended::Ended;
use super::frames::Frames;
use super::targets::Targets;
use super::turns::Turns;
use crate::config::Settings;
use crate::http_client::{HttpClient, Protocol, whole};
use crate::metrics::{FeedbackLabels, Metrics};
use crate::scheduler_view::SchedulerView;

const STREAM: PathAndQuery = PathAndQuery::from_static("/v1/loads/stream");
/// For an agent to answer, and the longest silence of a stream: ten heartbeats.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts: doubled each time, and drawn from its upper half.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A stream that was good for so long makes the next pause a first one.
const GOOD: Duration = Duration::from_secs(2);

/// What the listeners to agents share.
pub(crate) struct Listening {
    upstream: HttpClient,
    view: SchedulerView,
    metrics: Metrics,
    /// Whose token agents ask for.
    token_file: Option<PathBuf>,
    /// Agents beyond those of the snapshot.
    named: Vec<AgentAddress>,
}

impl Listening {
    pub(crate) fn new(
        settings: &Settings,
        upstream: &HttpClient,
        view: SchedulerView,
        metrics: &Metrics,
    ) -> Listening {
        Listening {
            upstream: upstream.clone(),
            view,
            metrics: metrics.clone(),
            token_file: settings.feedback_token_file.clone(),
            named: settings.agents.clone(),
        }
    }
}

/// One subscription to every agent that is known.
pub(crate) struct Subscriptions {
    shared: Arc<Shared>,
    turns: Turns,
    tasks: TaskTracker,
    known: Mutex<HashMap<AgentAddress, Subscription>>,
}

struct Shared {
    listening: Listening,
    targets: RwLock<Arc<Targets>>,
}

struct Subscription {
    task: AbortHandle,
    state: Arc<Mutex<State>>,
}

/// What is known of one agent.
#[derive(Debug, Default)]
struct State {
    ear: Ear,
    /// Since when the stream is good; `None` between two.
    since: Option<Instant>,
    heard: Option<Instant>,
    frames: u64,
    attempts: u64,
    problem: Option<String>,
}

impl Subscriptions {
    /// They end with `stop`.
    ///
    /// # Errors
    /// Where the thread that listens cannot be started.
    pub(crate) fn new(
        listening: Listening,
        tasks: TaskTracker,
        stop: &CancellationToken,
    ) -> io::Result<Subscriptions> {
        let shared = Arc::new(Shared { listening, targets: RwLock::default() });
        let turns = Turns::start(stop)?;
        Ok(Subscriptions { shared, turns, tasks, known: Mutex::default() })
    }

    /// Listens to the agents of a snapshot, and to those that flags name; no more to any other.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let targets = Arc::new(Targets::of(fleet));
        *self.shared.targets.write() = targets;
        let wanted: HashSet<&AgentAddress> =
            self.shared.listening.named.iter().chain(&fleet.agents).collect();
        let mut known = self.known();
        known.retain(|agent, subscription| {
            let stays = wanted.contains(agent);
            if !stays {
                subscription.task.abort();
            }
            stays
        });
        for agent in wanted {
            known.entry(agent.clone()).or_insert_with(|| self.start(agent.clone()));
        }
    }

    fn start(&self, agent: AgentAddress) -> Subscription {
        let ear = Ear::new(agent.node.clone());
        let state = Arc::new(Mutex::new(State { ear, ..State::default() }));
        let listener =
            Listener { shared: Arc::clone(&self.shared), agent, state: Arc::clone(&state) };
        let task = self.tasks.spawn_on(listener.listen(), self.turns.handle()).abort_handle();
        Subscription { task, state }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<AgentAddress, Subscription>> {
        self.known.lock()
    }

    /// Every agent and how it is doing, in the order of their addresses.
    pub(crate) fn describe(&self) -> Vec<AgentStatus> {
        let known = self.known();
        let mut all: Vec<AgentStatus> =
            known.iter().map(|(agent, one)| AgentStatus::of(agent, &state(&one.state))).collect();
        all.sort_by_key(|one| one.address);
        all
    }

    /// What the kernel said last of a pod, and the agent that told.
    pub(crate) fn pods(&self) -> HashMap<u64, (Arc<str>, PodRecord)> {
        let known = self.known();
        let mut all = HashMap::new();
        for (agent, one) in known.iter() {
            let state = state(&one.state);
            let told = state.ear.records();
            all.extend(told.map(|told| (told.pod, (Arc::clone(&agent.name), told.clone()))));
        }
        all
    }

    /// The same of one pod.
    pub(crate) fn pod(&self, pod: u64) -> Option<(Arc<str>, PodRecord)> {
        self.known().iter().find_map(|(agent, one)| {
            let record = state(&one.state).ear.record(pod)?.clone();
            Some((Arc::clone(&agent.name), record))
        })
    }

    /// Agents that are known, and those whose stream is good.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let known = self.known();
        let good = known.values().filter(|one| state(&one.state).since.is_some()).count();
        (known.len(), good)
    }
}

fn state(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock()
}

/// An agent as `/fleet` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AgentStatus {
    name: Arc<str>,
    address: SocketAddr,
    node: Option<Arc<str>>,
    /// As it calls its own node.
    told_node: String,
    connected: bool,
    /// Since the last frame.
    silent_ms: Option<u64>,
    frames: u64,
    attempts: u64,
    pods: usize,
    problem: Option<String>,
}

impl AgentStatus {
    fn of(agent: &AgentAddress, state: &State) -> AgentStatus {
        let silent = state.heard.map(|heard| heard.elapsed().as_millis());
        AgentStatus {
            name: Arc::clone(&agent.name),
            address: agent.address,
            node: agent.node.clone(),
            told_node: state.ear.told_node.clone(),
            connected: state.since.is_some(),
            silent_ms: silent.and_then(|ms| u64::try_from(ms).ok()),
            frames: state.frames,
            attempts: state.attempts,
            pods: state.ear.records().len(),
            problem: state.problem.clone(),
        }
    }
}

struct Listener {
    shared: Arc<Shared>,
    agent: AgentAddress,
    state: Arc<Mutex<State>>,
}

impl Listener {
    /// Subscribes again and again, until it is dropped.
    async fn listen(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(ended) = self.subscribe().await;
            let good = {
                let mut state = state(&self.state);
                state.ear.ended();
                let good = state.since.take().is_some_and(|since| since.elapsed() >= GOOD);
                let problem = ended.to_string();
                if state.problem.as_deref() != Some(&*problem) {
                    tracing::warn!(agent = %self.agent.name, address = %self.agent.address, problem, "no loads of an agent");
                    state.problem = Some(problem);
                }
                good
            };
            self.count(ended.reason(), 1);
            pause = if good { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
    }

    fn count(&self, reason: &'static str, by: u64) {
        if by > 0 {
            let labels = FeedbackLabels { reason };
            self.shared.listening.metrics.feedback_losses.get_or_create(&labels).inc_by(by);
        }
    }

    async fn subscribe(&self) -> Result<std::convert::Infallible, Ended> {
        state(&self.state).attempts += 1;
        let mut body = self.open().await?;
        let mut frames = Frames::default();
        let mut budget = Budget::start();
        // Counted from the last whole frame: one that comes byte by byte says nothing.
        let mut last = time::Instant::now();
        let mut silence = pin!(sleep_until(last + PATIENCE));
        loop {
            let piece = tokio::select! {
                biased;
                piece = body.frame() => match piece {
                    None => return Err(Ended::Over),
                    Some(Err(error)) => return Err(Ended::Broken(error.to_string())),
                    Some(Ok(piece)) => piece,
                },
                // It is wound up when it rings, and not at every frame.
                () = silence.as_mut() => {
                    if last.elapsed() >= PATIENCE {
                        return Err(Ended::Silent);
                    }
                    silence.as_mut().reset(last + PATIENCE);
                    continue;
                }
            };
            let Ok(data) = piece.into_data() else { continue };
            budget.spend(data.len())?;
            frames.take(&data, |frame| {
                budget.frame()?;
                last = time::Instant::now();
                self.hear(frame)
            })?;
        }
    }

    async fn open(&self) -> Result<Incoming, Ended> {
        let listening = &self.shared.listening;
        let mut headers = HeaderMap::new();
        if let Some(path) = &listening.token_file {
            headers.insert(AUTHORIZATION, bearer(path)?);
        }
        let authority: Authority = self
            .agent
            .address
            .to_string()
            .parse()
            .map_err(|_| Ended::Unreachable("no address".to_owned()))?;
        let nothing = whole(Bytes::new());
        let sent = listening.upstream.send_over(
            Protocol::Http1,
            authority,
            Method::GET,
            STREAM,
            headers,
            nothing,
        );
        let answer = timeout(PATIENCE, sent).await.map_err(|_| Ended::Silent)?;
        let answer = answer.map_err(|error| Ended::Unreachable(error.to_string()))?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(Ended::Refused(status)),
        }
    }

    fn hear(&self, bytes: &[u8]) -> Result<(), Ended> {
        let frame = frame::decode(bytes)?;
        let listening = &self.shared.listening;
        let targets = Arc::clone(&self.shared.targets.read());
        let now_us = listening.view.clock.now_us();
        let heard = {
            let mut state = state(&self.state);
            let heard = state.ear.hear(frame, &targets, &listening.view, now_us)?;
            let now = Instant::now();
            if state.since.is_none() {
                tracing::info!(agent = %self.agent.name, address = %self.agent.address, "hears an agent");
                state.since = Some(now);
                state.problem = None;
            }
            state.heard = Some(now);
            state.frames += 1;
            heard
        };
        listening.metrics.feedback_frames.inc();
        self.count("unknown_pod", heard.unknown);
        self.count("foreign_pod", heard.foreign);
        Ok(())
    }
}

/// The token is read anew for each attempt: a Secret that is mounted changes.
fn bearer(path: &std::path::Path) -> Result<HeaderValue, Ended> {
    let missing = || Ended::NoToken(path.display().to_string());
    let token = std::fs::read_to_string(path).map_err(|_| missing())?;
    let token = token.trim();
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| missing())?;
    if token.is_empty() {
        return Err(missing());
    }
    value.set_sensitive(true);
    Ok(value)
}
