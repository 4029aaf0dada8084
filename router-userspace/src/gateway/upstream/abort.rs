//! Aborts: requests an engine to stop working on a request whose client has gone.
//!
//! An engine notices a closed connection only after two to four seconds and computes on until then,
//! so a request that is given up is also aborted by its id. An engine with several pipeline stages gets its
//! aborts one by one. The connection of a prefill leg stays open until its turn, since a closed one is an
//! abort too. That of a decode, or of an engine that serves alone, closes at once. The abort of a request
//! that was sent a moment ago is repeated once, since the engine ignores one that it reads first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use router_core::fleet::Worker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::sent_mark::SentMark;
use crate::gateway::engine_client::EngineClient;
use crate::metrics::{AbortLabels, Metrics};

/// Maximum number of tasks that send aborts. Beyond it, an engine only sees its connection close.
const MAX_ABORTS: usize = 1024;
/// Maximum number of request ids of one attempt that are aborted one by one. For larger batches an
/// engine only sees its connection close.
const MAX_RIDS: usize = 64;
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two aborts at an engine with several pipeline stages: in a burst of them the stages of
/// SGLang's prefill lose agreement on their queues, and the engine hangs.
const PACED_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum time that an abort waits for its turn; so 500 wait at one engine at most. Beyond it, the engine
/// only sees the connection close.
const MAX_PACED_WAIT: Duration = Duration::from_secs(10);
/// An engine is assumed to have read a request this long after its last byte was written. It ignores an abort of a request
/// that it has not read, which may come by a connection of its own: such an abort is sent again then.
const READ_TIME: Duration = Duration::from_millis(250);
/// Maximum number of tasks that wait to repeat an abort. Beyond it, an abort is sent once.
const MAX_REPEATS: usize = 4096;
/// Number of engines beyond which the turns that have passed are forgotten.
const MAX_TURNS: usize = 1024;

/// Sends aborts from tasks of its own.
#[derive(Debug)]
pub(crate) struct Aborter {
    engines: EngineClient,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    repeats: Arc<Semaphore>,
    turns: Mutex<AbortTurns>,
    metrics: Metrics,
}

impl Aborter {
    pub(crate) fn new(engines: EngineClient, tasks: TaskTracker, metrics: Metrics) -> Arc<Aborter> {
        let permits = Arc::new(Semaphore::new(MAX_ABORTS));
        let repeats = Arc::new(Semaphore::new(MAX_REPEATS));
        Arc::new(Aborter { engines, tasks, permits, repeats, turns: Mutex::default(), metrics })
    }

    /// Aborts the requests. `leg`: the task that is ended with them, which keeps the connection open until
    /// then.
    fn abort(self: &Arc<Self>, requests: SentRequests, leg: Option<AbortHandle>) {
        let is_possible = (1..=MAX_RIDS).contains(&requests.rids.len());
        if is_possible && requests.worker.is_pipelined() {
            self.abort_in_turn(requests, leg);
            return;
        }
        if let Some(leg) = leg {
            leg.abort();
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let (Ok(permit), true) = (permit, is_possible) else {
            self.count("dropped");
            return;
        };
        let aborter = Arc::clone(self);
        self.tasks.spawn(async move {
            let repeat = requests.unread_until().and_then(|read| Some((read, aborter.repeat()?)));
            aborter.send_all(&requests).await;
            drop(permit);
            let Some((read, _permit)) = repeat else { return };
            sleep_until(read).await;
            aborter.send_all(&requests).await;
        });
    }

    /// A permit to wait until an abort is repeated.
    fn repeat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.repeats).try_acquire_owned().ok()
    }

    /// Aborts the requests one by one, each when the engine has its turn. A leg that ends while it waits
    /// for its turn needs no abort.
    fn abort_in_turn(self: &Arc<Self>, requests: SentRequests, leg: Option<AbortHandle>) {
        let Some(turns) = self.turns_of(&requests) else {
            if let Some(leg) = leg {
                leg.abort();
            }
            self.count("dropped");
            return;
        };
        let aborter = Arc::clone(self);
        self.tasks.spawn(async move {
            let (mut leg, mut repeat) = (leg, None);
            for (rid, turn) in requests.rids.iter().zip(turns) {
                sleep_until(turn).await;
                if let Some(leg) = leg.take() {
                    if leg.is_finished() {
                        return;
                    }
                    leg.abort();
                }
                repeat = repeat.or_else(|| requests.unread_until());
                aborter.send(&requests.worker, rid).await;
            }
            let Some(read) = repeat else { return };
            sleep_until(read).await;
            // They are few: aborts that have waited for a turn are of requests that were read meanwhile.
            let turns = aborter.turns_of(&requests).unwrap_or_default();
            for (rid, turn) in requests.rids.iter().zip(turns) {
                sleep_until(turn).await;
                aborter.send(&requests.worker, rid).await;
            }
        });
    }

    /// One turn for each request. `None` if too many wait.
    fn turns_of(&self, requests: &SentRequests) -> Option<Vec<Instant>> {
        let (mut turns, now) = (self.turns.lock(), Instant::now());
        requests.rids.iter().map(|_| turns.take(requests.worker.identity, now)).collect()
    }

    async fn send_all(&self, requests: &SentRequests) {
        for rid in &requests.rids {
            self.send(&requests.worker, rid).await;
        }
    }

    /// Sends one abort and counts its result.
    async fn send(&self, worker: &Worker, rid: &str) {
        let sent = timeout(ABORT_TIMEOUT, self.is_accepted(worker, rid)).await;
        self.count(if sent == Ok(true) { "sent" } else { "failed" });
    }

    async fn is_accepted(&self, worker: &Worker, rid: &str) -> bool {
        match self.engines.abort(worker, rid).await {
            Ok(status) if status.is_success() => true,
            Ok(status) => {
                tracing::debug!(worker = %worker.name, status = status.as_u16(), "abort refused");
                false
            }
            Err(error) => {
                tracing::debug!(worker = %worker.name, %error, "abort failed");
                false
            }
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics.aborts.get_or_create(&AbortLabels { result }).inc();
    }
}

/// When each engine with pipeline stages gets its next abort, by its worker's identity.
#[derive(Debug, Default)]
struct AbortTurns(HashMap<u64, Instant>);

impl AbortTurns {
    /// Takes the engine's next turn. `None` if it is over [`MAX_PACED_WAIT`] away.
    fn take(&mut self, identity: u64, now: Instant) -> Option<Instant> {
        if self.0.len() >= MAX_TURNS {
            self.0.retain(|_, next| *next > now);
        }
        let next = self.0.entry(identity).or_insert(now);
        let turn = (*next).max(now);
        if turn.duration_since(now) > MAX_PACED_WAIT {
            return None;
        }
        *next = turn + PACED_INTERVAL;
        Some(turn)
    }
}

/// Requests of one attempt at one engine.
struct SentRequests {
    worker: Arc<Worker>,
    rids: Vec<String>,
    sent: Arc<SentMark>,
}

impl SentRequests {
    /// Until when the engine may not have read the requests. `None` if that has passed. What is not written
    /// whole yet may be on its way now.
    fn unread_until(&self) -> Option<Instant> {
        let now = Instant::now();
        let read = self.sent.at().unwrap_or(now) + READ_TIME;
        (now < read).then_some(read)
    }
}

/// Aborts requests at their engine when dropped, unless [`AbortGuard::disarm`] was called.
pub(crate) struct AbortGuard {
    aborter: Arc<Aborter>,
    worker: Arc<Worker>,
    rids: Vec<String>,
    sent: Arc<SentMark>,
    /// The task of the leg if it still runs, ended together with its requests.
    leg: Option<AbortHandle>,
    armed: bool,
}

impl AbortGuard {
    /// For requests of one body, whose mark is `sent`.
    pub(crate) fn new(
        aborter: &Arc<Aborter>,
        worker: &Arc<Worker>,
        rids: Vec<String>,
        sent: Arc<SentMark>,
    ) -> AbortGuard {
        let (aborter, worker) = (Arc::clone(aborter), Arc::clone(worker));
        AbortGuard { aborter, worker, rids, sent, leg: None, armed: true }
    }

    /// Ends the task of the leg, with the abort if there is one.
    pub(crate) fn end(&mut self, leg: AbortHandle) {
        if self.armed { self.leg = Some(leg) } else { leg.abort() }
    }

    /// The engine is done with the request, or never had it.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        if self.armed {
            let (worker, rids) = (Arc::clone(&self.worker), std::mem::take(&mut self.rids));
            let requests = SentRequests { worker, rids, sent: Arc::clone(&self.sent) };
            self.aborter.abort(requests, self.leg.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use router_core::fleet::WorkerKey;

    use super::*;
    use crate::http_client::OnWritten;

    #[tokio::test(start_paused = true)]
    async fn the_time_to_read_a_request_begins_when_it_is_written_whole() {
        let key = WorkerKey { uid: "u".into(), address: ([127, 0, 0, 1], 1).into() };
        let worker = Arc::new(Worker::new(key, "default/pod"));
        let requests = SentRequests { worker, rids: Vec::new(), sent: SentMark::new(None) };
        // A long upload.
        tokio::time::advance(8 * READ_TIME).await;
        assert_eq!(requests.unread_until(), Some(Instant::now() + READ_TIME));
        requests.sent.written();
        tokio::time::advance(READ_TIME / 2).await;
        assert_eq!(requests.unread_until(), Some(Instant::now() + READ_TIME / 2));
        tokio::time::advance(READ_TIME / 2).await;
        assert_eq!(requests.unread_until(), None);
    }

    #[test]
    fn turns_of_one_engine_are_apart_and_bounded() {
        let (mut turns, now) = (AbortTurns::default(), Instant::now());
        let taken: Vec<Instant> = (0..1000).map_while(|_| turns.take(1, now)).collect();
        assert_eq!(taken.len(), 501, "ten seconds of one every 20 ms");
        assert!(taken.windows(2).all(|two| two[1] - two[0] == PACED_INTERVAL));
        assert_eq!(turns.take(2, now), Some(now), "another engine has turns of its own");
        let later = now + PACED_INTERVAL;
        assert_eq!(turns.take(1, later), Some(later + MAX_PACED_WAIT), "one turn has passed");
        assert_eq!(turns.take(1, later), None);
    }

    #[test]
    fn turns_that_have_passed_are_forgotten() {
        let (mut turns, now) = (AbortTurns::default(), Instant::now());
        for engine in 0..MAX_TURNS as u64 {
            turns.take(engine, now);
        }
        turns.take(MAX_TURNS as u64, now + PACED_INTERVAL);
        assert_eq!(turns.0.len(), 1);
    }
}
