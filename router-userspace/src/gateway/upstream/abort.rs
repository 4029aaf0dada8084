//! Aborts: tells an engine that nobody waits for a request any more.
//!
//! An engine notices a dropped connection only after two to four seconds and computes on until
//! then, so a request that is given up is also aborted by name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use router_core::fleet::Worker;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::http_client::{HttpClient, whole};
use crate::metrics::{AbortLabels, Metrics};

/// Aborts under way at once; beyond that the dropped connection has to do.
const MAX_ABORTS: usize = 1024;
/// Names of one batch that are aborted singly; larger batches end with their connection.
const MAX_NAMES: usize = 64;
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
const ABORT_PATH: PathAndQuery = PathAndQuery::from_static("/abort_request");

/// Sends aborts from tasks of its own.
#[derive(Debug)]
pub(crate) struct Aborter {
    upstream: HttpClient,
    api_key: Option<HeaderValue>,
    tasks: TaskTracker,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

impl Aborter {
    pub(crate) fn new(
        upstream: HttpClient,
        api_key: Option<HeaderValue>,
        tasks: TaskTracker,
        metrics: Metrics,
    ) -> Arc<Aborter> {
        let room = Arc::new(Semaphore::new(MAX_ABORTS));
        Arc::new(Aborter { upstream, api_key, tasks, room, metrics })
    }

    fn abort(self: &Arc<Self>, worker: Arc<Worker>, names: Vec<String>) {
        let permit = Arc::clone(&self.room).try_acquire_owned();
        let (Ok(permit), 1..=MAX_NAMES) = (permit, names.len()) else {
            self.count("dropped");
            return;
        };
        let aborter = Arc::clone(self);
        self.tasks.spawn(async move {
            for name in names {
                let sent = timeout(ABORT_TIMEOUT, aborter.send(&worker, &name)).await;
                aborter.count(if sent == Ok(true) { "sent" } else { "failed" });
            }
            drop(permit);
        });
    }

    async fn send(&self, worker: &Arc<Worker>, name: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.api_key {
            headers.insert(AUTHORIZATION, key.clone());
        }
        // A name is made of letters, digits and underscores: nothing to escape.
        let body = whole(Bytes::from(format!(r#"{{"rid":"{name}"}}"#)));
        let sent = self.upstream.send(worker, Method::POST, ABORT_PATH, headers, body).await;
        match sent {
            Ok(response) if response.status().is_success() => true,
            Ok(response) => {
                tracing::debug!(worker = %worker.name, status = response.status().as_u16(), "abort refused");
                false
            }
            Err(error) => {
                tracing::debug!(worker = %worker.name, %error, "abort not sent");
                false
            }
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics.aborts.get_or_create(&AbortLabels { result }).inc();
    }
}

/// Aborts a request at its engine when dropped before [`AbortGuard::disarm`].
pub(crate) struct AbortGuard {
    aborter: Arc<Aborter>,
    worker: Arc<Worker>,
    names: Vec<String>,
    armed: bool,
}

impl AbortGuard {
    pub(crate) fn new(
        aborter: &Arc<Aborter>,
        worker: &Arc<Worker>,
        names: Vec<String>,
    ) -> AbortGuard {
        let (aborter, worker) = (Arc::clone(aborter), Arc::clone(worker));
        AbortGuard { aborter, worker, names, armed: true }
    }

    /// The engine is done with the request, or never had it.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        if self.armed {
            self.aborter.abort(Arc::clone(&self.worker), std::mem::take(&mut self.names));
        }
    }
}
