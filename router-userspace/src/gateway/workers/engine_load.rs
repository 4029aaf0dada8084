//! Polls the load that engines report of themselves: the slower second source beside the agents, and
//! the capacity limits that admission uses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use router_core::fleet::{Fleet, Worker};
use router_core::sglang::loads::LoadEndpoint;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::FollowedWorker;
use crate::clock::MonotonicClock;
use crate::gateway::engine_client::EngineClient;
use crate::supervise::restarted;

/// Maximum size of an answer, in bytes; a metrics page is some hundred KB.
const MAX_ANSWER: usize = 4 << 20;
/// Intervals after which an engine of which no load endpoint answers with a load is polled again.
const UNSUPPORTED_PAUSE: u32 = 30;

/// The state that all poll tasks share.
#[derive(Clone)]
pub(crate) struct LoadPoller {
    pub(crate) engines: EngineClient,
    pub(crate) clock: MonotonicClock,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// One poll task per worker of the fleet.
pub(crate) struct LoadPolls {
    poller: LoadPoller,
    tasks: TaskTracker,
    stop: CancellationToken,
    polled: Mutex<HashMap<FollowedWorker, CancellationToken>>,
}

impl LoadPolls {
    pub(crate) fn new(
        poller: LoadPoller,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> LoadPolls {
        LoadPolls { poller, tasks, stop, polled: Mutex::default() }
    }

    /// Starts the polls of new workers and stops those of removed workers.
    #[expect(clippy::mutable_key_type, reason = "the key is compared by its address")]
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let mut polled = self.polled.lock();
        let mut now = HashMap::with_capacity(polled.len());
        for (_, member) in fleet.members() {
            let worker = FollowedWorker(Arc::clone(&member.worker));
            if now.contains_key(&worker) {
                continue;
            }
            let known = polled.remove(&worker);
            let stop = known.unwrap_or_else(|| self.start(Arc::clone(&worker.0)));
            now.insert(worker, stop);
        }
        polled.values().for_each(CancellationToken::cancel);
        *polled = now;
    }

    fn start(&self, worker: Arc<Worker>) -> CancellationToken {
        let stop = self.stop.child_token();
        let (poller, stopped) = (self.poller.clone(), stop.clone());
        let watched = restarted("engine load", move || poller.clone().watch(Arc::clone(&worker)));
        self.tasks.spawn(async move { stopped.run_until_cancelled(watched).await });
        stop
    }
}

impl LoadPoller {
    async fn watch(self, worker: Arc<Worker>) {
        let mut endpoint = None;
        loop {
            // Jitter, so that a thousand engines are not polled at once.
            tokio::time::sleep(self.interval.mul_f64(rand::random_range(0.9..=1.1))).await;
            if !worker.health.verdict().serves() {
                endpoint = None;
                continue;
            }
            let before = endpoint.take();
            endpoint = match before {
                Some(endpoint) if self.poll(&worker, endpoint).await => Some(endpoint),
                _ => self.find(&worker).await,
            };
            // One that had an endpoint until now is looked at again after one interval.
            if endpoint.is_none() && before.is_none() {
                tokio::time::sleep(self.interval * UNSUPPORTED_PAUSE).await;
            }
        }
    }

    /// The first load endpoint that the engine has.
    async fn find(&self, worker: &Worker) -> Option<LoadEndpoint> {
        for endpoint in LoadEndpoint::ALL {
            if self.poll(worker, endpoint).await {
                return Some(endpoint);
            }
        }
        None
    }

    /// Polls once. Returns false if the engine answers without a load: it does not have this endpoint, or
    /// fails for a moment. An engine that is slow or down may have it.
    async fn poll(&self, worker: &Worker, endpoint: LoadEndpoint) -> bool {
        let path = PathAndQuery::from_static(endpoint.query());
        let answer = self.engines.get(worker.authority.clone(), path, MAX_ANSWER);
        let Ok(Ok((status, answer))) = timeout(self.timeout, answer).await else { return true };
        if status != StatusCode::OK {
            return false;
        }
        let Some(report) = endpoint.read(&answer) else { return false };
        worker.engine.set_ranks(&report.ranks, |rank| worker.usage_of_rank(rank));
        worker.engine.set(report.all, worker.usage(), self.clock.now_ms());
        true
    }
}
