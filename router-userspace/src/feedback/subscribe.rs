//! The gateway's side: one subscription to each agent, with reconnect and backoff.
//!
//! A slow, dead, lying or flooding agent has a bounded cost: its pods' loads go stale, and the
//! scheduler uses what else it knows.

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
use parking_lot::{Mutex, RwLock};
use router_core::fleet::{AgentAddress, Fleet};
use router_core::frame::{self, PodRecord, RoomRecord};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{self, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agent_clock::AgentClock;
use super::agent_state::{AgentState, SkippedRecords};
use super::budget::Budget;
use super::clock_probe::ClockProbe;
use super::frame_splitter::FrameSplitter;
use super::kv_pairs::KvPair;
use super::pod_workers::PodWorkers;
use super::runtime::FeedbackRuntime;
use super::stream_error::{STREAM_TIMEOUT, StreamError};
use crate::config::GatewaySettings;
use crate::http_client::received_body::ReceivedBody;
use crate::http_client::{HttpClient, Protocol, whole};
use crate::metrics::{FeedbackLabels, Metrics, ResultLabels};
use crate::rooms::{ClockOffset, RoomRegistry};
use crate::scheduler_view::SchedulerView;

const STREAM_PATH: PathAndQuery = PathAndQuery::from_static("/v1/loads/stream");
/// Time between two attempts: doubled after each failure, and drawn from its upper half.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// A stream that lasted this long resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// What all subscribers to agents share.
pub(crate) struct SubscriberContext {
    pub(super) upstream: HttpClient,
    pub(super) view: SchedulerView,
    metrics: Metrics,
    /// Where to find the attempts that records of rooms belong to.
    rooms: RoomRegistry,
    /// The file with the bearer token that agents require.
    token_file: Option<PathBuf>,
    /// Agents from flags, in addition to those of the snapshot.
    static_agents: Vec<AgentAddress>,
}

impl SubscriberContext {
    pub(crate) fn new(
        settings: &GatewaySettings,
        upstream: &HttpClient,
        view: SchedulerView,
        metrics: &Metrics,
        rooms: &RoomRegistry,
    ) -> SubscriberContext {
        SubscriberContext {
            upstream: upstream.clone(),
            view,
            metrics: metrics.clone(),
            rooms: rooms.clone(),
            token_file: settings.agent_token_file.clone(),
            static_agents: settings.agents.clone(),
        }
    }

    /// The headers of requests to agents.
    pub(super) fn headers(&self) -> Result<HeaderMap, StreamError> {
        let mut headers = HeaderMap::new();
        if let Some(path) = &self.token_file {
            headers.insert(AUTHORIZATION, bearer(path)?);
        }
        Ok(headers)
    }
}

/// One subscription to every known agent.
pub(crate) struct Subscriptions {
    shared: Arc<SubscriberShared>,
    runtime: FeedbackRuntime,
    /// Where clocks are compared.
    main_runtime: Handle,
    tasks: TaskTracker,
    agents: Mutex<HashMap<AgentAddress, Subscription>>,
}

pub(super) struct SubscriberShared {
    pub(super) context: SubscriberContext,
    workers: RwLock<Arc<PodWorkers>>,
}

struct Subscription {
    tasks: [AbortHandle; 2],
    state: Arc<Mutex<SubscriptionState>>,
}

/// The state of one subscription.
#[derive(Debug, Default)]
pub(super) struct SubscriptionState {
    agent: AgentState,
    pub(super) clock: AgentClock,
    /// When the stream delivered its first frame; `None` while disconnected.
    pub(super) connected_at: Option<Instant>,
    last_frame: Option<Instant>,
    frames: u64,
    attempts: u64,
    last_error: Option<String>,
}

impl Subscriptions {
    /// The subscriptions end with `stop`. Clocks are compared on the current runtime.
    ///
    /// # Errors
    /// The feedback thread cannot be started.
    pub(crate) fn new(
        context: SubscriberContext,
        tasks: TaskTracker,
        stop: &CancellationToken,
    ) -> io::Result<Subscriptions> {
        let shared = Arc::new(SubscriberShared { context, workers: RwLock::default() });
        let runtime = FeedbackRuntime::start(stop)?;
        let main_runtime = Handle::current();
        Ok(Subscriptions { shared, runtime, main_runtime, tasks, agents: Mutex::default() })
    }

    /// Subscribes to the agents of a snapshot and of flags, and ends all other subscriptions.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let workers = Arc::new(PodWorkers::of(fleet));
        *self.shared.workers.write() = workers;
        let wanted: HashSet<&AgentAddress> =
            self.shared.context.static_agents.iter().chain(&fleet.agents).collect();
        let mut agents = self.agents.lock();
        agents.retain(|agent, subscription| {
            let stays = wanted.contains(agent);
            if !stays {
                subscription.tasks.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        for agent in wanted {
            agents.entry(agent.clone()).or_insert_with(|| self.start(agent.clone()));
        }
    }

    fn start(&self, agent: AgentAddress) -> Subscription {
        let initial = SubscriptionState {
            agent: AgentState::new(agent.node.clone()),
            ..SubscriptionState::default()
        };
        let state = Arc::new(Mutex::new(initial));
        let probe = ClockProbe {
            shared: Arc::clone(&self.shared),
            agent: agent.clone(),
            state: Arc::clone(&state),
        };
        let subscriber =
            AgentSubscriber { shared: Arc::clone(&self.shared), agent, state: Arc::clone(&state) };
        let stream = self.tasks.spawn_on(subscriber.run(), self.runtime.handle());
        let clock = self.tasks.spawn_on(probe.run(), &self.main_runtime);
        Subscription { tasks: [stream.abort_handle(), clock.abort_handle()], state }
    }

    /// The status of every agent, sorted by address.
    pub(crate) fn describe(&self) -> Vec<AgentStatus> {
        let agents = self.agents.lock();
        let now_us = self.shared.context.view.clock.now_us();
        let status =
            |(agent, one): (&_, &Subscription)| AgentStatus::of(agent, &one.state.lock(), now_us);
        let mut all: Vec<AgentStatus> = agents.iter().map(status).collect();
        all.sort_by_key(|status| status.address);
        all
    }

    /// The last record of every pod, with the name of the agent that sent it.
    pub(crate) fn pods(&self) -> HashMap<u64, (Arc<str>, PodRecord)> {
        let agents = self.agents.lock();
        let mut all = HashMap::new();
        for (agent, one) in agents.iter() {
            let state = one.state.lock();
            let records = state.agent.records();
            all.extend(records.map(|record| {
                let sender = Arc::clone(&agent.name);
                (record.pod, (sender, record.clone()))
            }));
        }
        all
    }

    /// The last record of one pod, with the name of the agent that sent it.
    pub(crate) fn pod(&self, pod: u64) -> Option<(Arc<str>, PodRecord)> {
        self.agents.lock().iter().find_map(|(agent, one)| {
            let record = one.state.lock().agent.record(pod)?.clone();
            Some((Arc::clone(&agent.name), record))
        })
    }

    /// The last records of the pairs of pods that exchange KV cache, from every agent.
    pub(crate) fn kv_pairs(&self) -> Vec<KvPair> {
        let now_us = self.shared.context.view.clock.now_us();
        let agents = self.agents.lock();
        let states = agents.values().map(|one| one.state.lock());
        states.flat_map(|state| state.agent.kv_pairs(now_us).collect::<Vec<_>>()).collect()
    }

    /// The number of known agents, and of those with a connected stream.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let agents = self.agents.lock();
        let is_connected = |one: &&Subscription| one.state.lock().connected_at.is_some();
        (agents.len(), agents.values().filter(is_connected).count())
    }
}

/// An agent as `/fleet` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AgentStatus {
    name: Arc<str>,
    address: SocketAddr,
    node: Option<Arc<str>>,
    /// The node's name according to the agent.
    reported_node: String,
    connected: bool,
    /// Time since the last frame; null before the first.
    last_frame_age_ms: Option<u64>,
    /// How far off a time of the agent's clock can be here; null while the clocks have not been compared.
    clock_error_ms: Option<f64>,
    frames: u64,
    attempts: u64,
    pods: usize,
    last_error: Option<String>,
}

impl AgentStatus {
    fn of(agent: &AgentAddress, state: &SubscriptionState, now_us: u64) -> AgentStatus {
        let clock = state.clock.offset(state.agent.instance, now_us);
        let age = state.last_frame.map(|last| last.elapsed().as_millis());
        AgentStatus {
            name: Arc::clone(&agent.name),
            address: agent.address,
            node: agent.node.clone(),
            reported_node: state.agent.reported_node.clone(),
            connected: state.connected_at.is_some(),
            last_frame_age_ms: age.and_then(|ms| u64::try_from(ms).ok()),
            clock_error_ms: clock.map(|clock| f64::from(clock.error_us) / 1e3),
            frames: state.frames,
            attempts: state.attempts,
            pods: state.agent.records().len(),
            last_error: state.last_error.clone(),
        }
    }
}

struct AgentSubscriber {
    shared: Arc<SubscriberShared>,
    agent: AgentAddress,
    state: Arc<Mutex<SubscriptionState>>,
}

impl AgentSubscriber {
    /// Connects and reconnects until the task is aborted.
    async fn run(self) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let Err(error) = self.subscribe().await;
            let was_stable = {
                let mut state = self.state.lock();
                state.agent.end_stream();
                let connected_at = state.connected_at.take();
                let reason = error.to_string();
                if state.last_error.as_deref() != Some(&*reason) {
                    tracing::warn!(agent = %self.agent.name, address = %self.agent.address, reason, "agent stream lost");
                    state.last_error = Some(reason);
                }
                connected_at.is_some_and(|at| at.elapsed() >= STABLE_AFTER)
            };
            self.count(error.reason(), 1);
            backoff = if was_stable { MIN_BACKOFF } else { (backoff * 2).min(MAX_BACKOFF) };
            tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
    }

    fn count(&self, reason: &'static str, by: u64) {
        if by > 0 {
            let labels = FeedbackLabels { reason };
            self.shared.context.metrics.feedback_errors.get_or_create(&labels).inc_by(by);
        }
    }

    async fn subscribe(&self) -> Result<std::convert::Infallible, StreamError> {
        self.state.lock().attempts += 1;
        let mut body = self.open().await?;
        let mut splitter = FrameSplitter::default();
        let mut budget = Budget::start();
        // Counted from the last whole frame: a frame that arrives byte by byte is no sign of life.
        let mut last = time::Instant::now();
        let mut deadline = pin!(sleep_until(last + STREAM_TIMEOUT));
        loop {
            let piece = tokio::select! {
                biased;
                piece = body.frame() => match piece {
                    None => return Err(StreamError::Closed),
                    Some(Err(error)) => return Err(StreamError::Broken(error.to_string())),
                    Some(Ok(piece)) => piece,
                },
                // Re-armed only when it fires, not on every frame.
                () = deadline.as_mut() => {
                    if last.elapsed() >= STREAM_TIMEOUT {
                        return Err(StreamError::Timeout);
                    }
                    deadline.as_mut().reset(last + STREAM_TIMEOUT);
                    continue;
                }
            };
            let Ok(data) = piece.into_data() else { continue };
            budget.spend(data.len())?;
            splitter.push(&data, |frame| {
                budget.frame()?;
                last = time::Instant::now();
                self.apply(frame)
            })?;
        }
    }

    async fn open(&self) -> Result<ReceivedBody, StreamError> {
        let context = &self.shared.context;
        let headers = context.headers()?;
        let authority: Authority = self
            .agent
            .address
            .to_string()
            .parse()
            .map_err(|_| StreamError::Unreachable("invalid address".to_owned()))?;
        let empty = whole(Bytes::new());
        let sent = context.upstream.send(
            Protocol::Http1,
            authority,
            Method::GET,
            STREAM_PATH,
            headers,
            empty,
        );
        let answer = timeout(STREAM_TIMEOUT, sent).await.map_err(|_| StreamError::Timeout)?;
        let answer = answer.map_err(|error| StreamError::Unreachable(error.to_string()))?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(StreamError::Refused(status)),
        }
    }

    fn apply(&self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut frame = frame::decode(bytes)?;
        let instance = frame.instance;
        let rooms = frame.take_rooms();
        let context = &self.shared.context;
        let workers = Arc::clone(&self.shared.workers.read());
        let now_us = context.view.clock.now_us();
        let (SkippedRecords { unknown_pod, other_node }, clock) = {
            let mut state = self.state.lock();
            let skipped = state.agent.apply_frame(frame, &workers, &context.view, now_us)?;
            let now = Instant::now();
            if state.connected_at.is_none() {
                tracing::info!(agent = %self.agent.name, address = %self.agent.address, "agent stream connected");
                state.connected_at = Some(now);
                state.last_error = None;
            }
            state.last_frame = Some(now);
            state.frames += 1;
            (skipped, state.clock.offset(instance, now_us))
        };
        self.apply_rooms(&rooms, clock);
        context.metrics.feedback_frames.inc();
        self.count("unknown_pod", unknown_pod);
        self.count("other_node", other_node);
        Ok(())
    }
}

impl AgentSubscriber {
    /// Passes what happened to KV transfers to the attempts of this gateway.
    fn apply_rooms(&self, rooms: &[RoomRecord], clock: Option<ClockOffset>) {
        let context = &self.shared.context;
        let joined = rooms.iter().filter(|record| context.rooms.apply(record, clock)).count();
        for (result, count) in [("joined", joined), ("unmatched", rooms.len() - joined)] {
            if count > 0 {
                let labels = ResultLabels { result };
                context.metrics.feedback_rooms.get_or_create(&labels).inc_by(count as u64);
            }
        }
    }
}

/// Reads the token. It is read for each attempt, since a mounted Secret changes.
fn bearer(path: &std::path::Path) -> Result<HeaderValue, StreamError> {
    let missing = || StreamError::NoToken(path.display().to_string());
    let token = std::fs::read_to_string(path).map_err(|_| missing())?;
    let token = token.trim();
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| missing())?;
    if token.is_empty() {
        return Err(missing());
    }
    value.set_sensitive(true);
    Ok(value)
}
