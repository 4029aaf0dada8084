//! Polls what engines tell of their own load: the slower second source beside the agents, and the
//! limits that admission keeps to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use router_core::fleet::{Fleet, Verdict, Worker, WorkerKey};
use router_core::sglang::loads::LoadEndpoint;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::http_client::{HttpClient, Protocol, whole};
use crate::supervise::restarted;

/// Largest answer that is read; a page of metrics is some hundred KB.
const MAX_ANSWER: usize = 4 << 20;
/// An engine that tells nothing in any form is asked again after so many intervals.
const GIVE_UP: u32 = 30;

/// What the poll of a worker needs beside the worker.
#[derive(Clone)]
pub(crate) struct Poller {
    pub(crate) upstream: HttpClient,
    pub(crate) api_key: Option<HeaderValue>,
    pub(crate) clock: Clock,
    pub(crate) interval: Duration,
    pub(crate) patience: Duration,
}

/// One poll task a worker, following the fleet.
pub(crate) struct Polls {
    poller: Poller,
    tasks: TaskTracker,
    stop: CancellationToken,
    polled: Mutex<HashMap<WorkerKey, CancellationToken>>,
}

impl Polls {
    pub(crate) fn new(poller: Poller, tasks: TaskTracker, stop: CancellationToken) -> Polls {
        Polls { poller, tasks, stop, polled: Mutex::default() }
    }

    /// Starts polls of new workers and stops those of workers that are gone.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let mut polled = self.polled.lock();
        let mut now = HashMap::with_capacity(polled.len());
        for (_, member) in fleet.members() {
            let worker = &member.worker;
            if now.contains_key(&worker.key) {
                continue;
            }
            let known = polled.remove(&worker.key);
            let stop = known.unwrap_or_else(|| self.start(Arc::clone(worker)));
            now.insert(worker.key.clone(), stop);
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

impl Poller {
    async fn watch(self, worker: Arc<Worker>) {
        let mut form = None;
        loop {
            // Spread, so that a thousand engines are not asked at once.
            tokio::time::sleep(self.interval.mul_f64(rand::random_range(0.9..=1.1))).await;
            if worker.health.verdict() != Verdict::Up {
                form = None;
                continue;
            }
            form = match form {
                Some(form) => self.ask(&worker, form).await.then_some(form),
                None => self.find(&worker).await,
            };
            if form.is_none() {
                tokio::time::sleep(self.interval * GIVE_UP).await;
            }
        }
    }

    /// The first form in which it tells anything.
    async fn find(&self, worker: &Worker) -> Option<LoadEndpoint> {
        for form in LoadEndpoint::ALL {
            if self.ask(worker, form).await {
                return Some(form);
            }
        }
        None
    }

    /// Asks once; false where the engine does not tell in this form. One that is late or away
    /// may tell the next time.
    async fn ask(&self, worker: &Worker, form: LoadEndpoint) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.api_key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        let path = PathAndQuery::from_static(form.query());
        let (to, none) = (worker.authority.clone(), whole(bytes::Bytes::new()));
        let call = async {
            let sent =
                self.upstream.send_over(Protocol::Http1, to, Method::GET, path, headers, none);
            let answer = sent.await.ok()?;
            let status = answer.status();
            let body = crate::http_client::read_body(answer.into_body(), MAX_ANSWER).await.ok()?;
            Some((status, body))
        };
        let Ok(Some((status, answer))) = timeout(self.patience, call).await else { return true };
        if status != StatusCode::OK {
            return false;
        }
        let Some(told) = form.read(&answer) else { return false };
        worker.engine.set_ranks(&told.ranks, |rank| worker.usage_of_rank(rank));
        worker.engine.set(told.all, worker.usage(), self.clock.now_ms());
        true
    }
}
