//! [`Mirrors`]: copies of requests for the mirrors of their route. A mirror never holds up the request
//! that it copies: what there is no permit or memory for is not mirrored.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::request::Parts;
use http_body::Body;
use http_body_util::BodyExt;
use router_core::route::{Found, Target};
use router_core::sglang::Endpoint;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handle::Rejected;
use super::record::Record;
use super::routed::RoutedRequest;
use super::upgrade::UpgradeRequest;
use crate::config::MirrorFlags;
use crate::gateway::shared::Gateway;
use crate::http_client::body_copy::{BodyCopy, NoCopy};
use crate::http_client::client_body::ClientBody;
use crate::http_client::collector::BodyMemory;
use crate::http_client::request_source::RequestSource;
use crate::metrics::{MirrorDrop, ReasonLabels};

/// The limits and the tasks of mirrored requests.
pub(crate) struct Mirrors {
    permits: Arc<Semaphore>,
    memory: BodyMemory,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A request for a mirror, whose body is still on its way to the request's own target.
struct MirroredRequest {
    target: Target,
    request: RoutedRequest,
    request_id: HeaderValue,
    route: Arc<str>,
    permit: OwnedSemaphorePermit,
}

impl Mirrors {
    /// `stop` ends the mirrored requests.
    pub(crate) fn new(
        limits: &MirrorFlags,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Mirrors {
        let permits = Arc::new(Semaphore::new(limits.max_mirrors));
        Mirrors { permits, memory: BodyMemory::new(limits.max_mirror_memory), tasks, stop }
    }

    /// Runs a task until it ends or the gateway does.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(task).await });
    }
}

impl Gateway {
    /// Copies a request to the mirrors of its route. The copies are sent once the whole body has passed.
    pub(super) fn mirror(
        self: &Arc<Self>,
        found: &Found<'_>,
        parts: &Parts,
        body: &mut ClientBody,
        record: &Record,
    ) {
        let requests = self.mirrored(found, parts, record);
        if requests.is_empty() {
            return;
        }
        let (copy, pending) = BodyCopy::new(body.size_hint().exact(), &self.mirrors.memory);
        body.copied_to(copy);
        let gateway = Arc::clone(self);
        self.mirrors.spawn(async move {
            match pending.whole().await {
                Ok(body) => {
                    for request in requests {
                        let sent = Arc::clone(&gateway).send_mirrored(request, body.clone());
                        gateway.mirrors.spawn(sent);
                    }
                }
                Err(why) => gateway.count_dropped(why.into(), requests.len()),
            }
        });
    }

    /// The requests for the mirrors that get this request and have a permit.
    fn mirrored(&self, found: &Found<'_>, parts: &Parts, record: &Record) -> Vec<MirroredRequest> {
        // An upgraded connection has two ends, and no third.
        let is_proxied = matches!(found.target, Target::Service(_) | Target::Pool(_))
            && parts.extensions.get::<UpgradeRequest>().is_none();
        let drawn = found.mirrors.iter().filter(|one| one.share.takes(rand::random()));
        let mut requests = Vec::new();
        for mirror in drawn.filter(|_| is_proxied) {
            let Ok(permit) = Arc::clone(&self.mirrors.permits).try_acquire_owned() else {
                self.count_dropped(MirrorDrop::TooMany, 1);
                continue;
            };
            let mut parts = parts.clone();
            parts.extensions.clear();
            let found = Found { target: &mirror.target, ..*found };
            let empty = ClientBody::new(RequestSource::Copied(None), None, false);
            // What fails here fails for the request itself too, which is answered with the reason.
            if let Ok(request) = self.prepare(&found, parts, empty, record) {
                requests.push(MirroredRequest {
                    target: mirror.target.clone(),
                    request,
                    request_id: record.request_id.clone(),
                    route: Arc::clone(&found.route().name),
                    permit,
                });
            }
        }
        requests
    }

    async fn send_mirrored(self: Arc<Self>, mirrored: MirroredRequest, body: Bytes) {
        let MirroredRequest { target, mut request, request_id, route, permit } = mirrored;
        let mut record = Record::new(&self, request_id);
        record.route = Some(route);
        request.body = ClientBody::new(RequestSource::Copied(Some(body)), None, false);
        let reply = match &target {
            Target::Service(service) => {
                self.proxy(service, request, &mut record).await.map_err(Rejected::from)
            }
            Target::Pool(pool) => self.serve_pool(pool, request, &mut record).await,
            Target::Redirect(_) | Target::Broken { .. } => return,
        };
        record.endpoint = "mirror";
        // No client waits for it: `/requests` has the request that it copies.
        record.pool = None;
        let reply = reply.unwrap_or_else(|rejected| rejected.reply(Endpoint::Chat, &mut record));
        let mut answer = self.begin(reply, record).into_body();
        // Read to the end, so that the mirror does the whole work. The body ends at its own limits.
        while let Some(Ok(_)) = answer.frame().await {}
        drop(permit);
    }

    fn count_dropped(&self, why: MirrorDrop, requests: usize) {
        let labels = ReasonLabels { reason: why.reason() };
        self.metrics.mirrors_dropped.get_or_create(&labels).inc_by(requests as u64);
    }
}

impl From<NoCopy> for MirrorDrop {
    fn from(why: NoCopy) -> MirrorDrop {
        match why {
            NoCopy::NoMemory => MirrorDrop::NoMemory,
            NoCopy::Incomplete => MirrorDrop::Incomplete,
        }
    }
}
