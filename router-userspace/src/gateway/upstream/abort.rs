//! Aborts: requests an engine to stop working on a request whose client has gone.
//!
//! An engine notices a closed connection only after two to four seconds and computes on until then,
//! so a request that is given up is also aborted by its id.

use std::sync::Arc;
use std::time::Duration;

use router_core::fleet::Worker;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::gateway::engine_client::EngineClient;
use crate::metrics::{AbortLabels, Metrics};

/// Maximum number of tasks that send aborts. Beyond it, an engine only sees its connection close.
const MAX_ABORTS: usize = 1024;
/// Maximum number of request ids of one attempt that are aborted one by one. For larger batches an
/// engine only sees its connection close.
const MAX_RIDS: usize = 64;
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends aborts from tasks of its own.
#[derive(Debug)]
pub(crate) struct Aborter {
    engines: EngineClient,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    metrics: Metrics,
}

impl Aborter {
    pub(crate) fn new(engines: EngineClient, tasks: TaskTracker, metrics: Metrics) -> Arc<Aborter> {
        let permits = Arc::new(Semaphore::new(MAX_ABORTS));
        Arc::new(Aborter { engines, tasks, permits, metrics })
    }

    fn abort(self: &Arc<Self>, worker: Arc<Worker>, rids: Vec<String>) {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let (Ok(permit), 1..=MAX_RIDS) = (permit, rids.len()) else {
            self.count("dropped");
            return;
        };
        let aborter = Arc::clone(self);
        self.tasks.spawn(async move {
            for rid in rids {
                let sent = timeout(ABORT_TIMEOUT, aborter.send(&worker, &rid)).await;
                aborter.count(if sent == Ok(true) { "sent" } else { "failed" });
            }
            drop(permit);
        });
    }

    async fn send(&self, worker: &Worker, rid: &str) -> bool {
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

/// Aborts requests at their engine when dropped, unless [`AbortGuard::disarm`] was called.
pub(crate) struct AbortGuard {
    aborter: Arc<Aborter>,
    worker: Arc<Worker>,
    rids: Vec<String>,
    armed: bool,
}

impl AbortGuard {
    pub(crate) fn new(
        aborter: &Arc<Aborter>,
        worker: &Arc<Worker>,
        rids: Vec<String>,
    ) -> AbortGuard {
        let (aborter, worker) = (Arc::clone(aborter), Arc::clone(worker));
        AbortGuard { aborter, worker, rids, armed: true }
    }

    /// The engine is done with the request, or never had it.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        if self.armed {
            self.aborter.abort(Arc::clone(&self.worker), std::mem::take(&mut self.rids));
        }
    }
}
