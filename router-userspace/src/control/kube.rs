//! The source that watches a cluster: one task a watch, all feeding the [`Index`].
//!
//! What cannot be watched, an API server that is away or a kind that is not installed, is tried
//! again; what was read of it before goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Client, Config};
use router_core::fleet::Fleet;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::fronts::plan::Shape;
use super::index::{Exposure, Index};
use super::objects::Kind;
use super::status::{self, Report};
use super::watched::{self, Change, Failure, Seen, Watch, Watched};
use crate::config::ExposureFlags;

/// Changes that wait to be read; watches wait beyond that.
const MAX_WAITING: usize = 4096;
/// Between two looks at what has changed.
const REST: Duration = Duration::from_millis(20);
/// Between a failure and the next try; doubled up to [`LONGEST_PAUSE`] while it goes on.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks for a kind that is not installed.
const ABSENT_PAUSE: Duration = Duration::from_secs(2);
/// The API server sends a bookmark every minute: longer silence is a dead connection.
const SILENCE: Duration = Duration::from_secs(150);

/// A cluster, by its API server.
pub struct Cluster {
    client: Client,
    watched: Watched,
    tasks: BTreeMap<Watch, AbortOnDropHandle<()>>,
    tell: mpsc::Sender<(Watch, Change)>,
    told: mpsc::Receiver<(Watch, Change)>,
    exposure: Exposure,
    /// To the task that writes statuses and Services.
    report: watch::Sender<Arc<Report>>,
    _status: Option<AbortOnDropHandle<()>>,
    /// Received and not yet read.
    waiting: Vec<(Watch, Change)>,
    /// Not read before: in a burst, one fleet is made for many changes.
    rests_until: Instant,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("watched", &self.watched).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads how to reach the API server: of the pod that this runs in, or a kubeconfig. Nothing
    /// is asked yet.
    ///
    /// # Errors
    /// Neither is there, or it cannot be used.
    pub async fn open(flags: &ExposureFlags) -> anyhow::Result<Cluster> {
        let client = client().await?;
        let namespace: Arc<str> = client.default_namespace().into();
        let mut cluster = Cluster::new(client.clone(), Watched::of_gateway(&namespace));
        cluster.exposure = match &flags.gateway_service {
            Some(shared) => Exposure::Shared(shared.clone()),
            None => Exposure::Each { namespace: Arc::clone(&namespace) },
        };
        let shape = flags.gateway_service.is_none().then(|| Shape {
            namespace,
            type_: flags.gateway_service_type.as_str(),
            annotations: flags.gateway_service_annotation.iter().cloned().collect(),
            selector: flags.gateway_pod_labels.0.clone(),
        });
        let status = tokio::spawn(status::run(client, cluster.report.subscribe(), shape));
        cluster._status = Some(AbortOnDropHandle::new(status));
        Ok(cluster)
    }

    /// The cluster as `watched` looks at it, for whoever writes nothing back.
    ///
    /// # Errors
    /// As [`Cluster::open`].
    pub async fn read_only(watched: Watched) -> anyhow::Result<Cluster> {
        Ok(Cluster::new(client().await?, watched))
    }

    fn new(client: Client, watched: Watched) -> Cluster {
        let (tell, told) = mpsc::channel(MAX_WAITING);
        let (report, _) = watch::channel(Arc::default());
        Cluster {
            client,
            watched,
            tasks: BTreeMap::new(),
            tell,
            told,
            exposure: Exposure::Direct,
            report,
            _status: None,
            waiting: Vec::new(),
            rests_until: Instant::now(),
        }
    }

    /// Where clients reach the Gateways.
    pub fn exposure(&self) -> &Exposure {
        &self.exposure
    }

    /// Waits until a watch has told something.
    pub async fn changed(&mut self) {
        tokio::time::sleep_until(self.rests_until).await;
        if self.tasks.is_empty() || !self.waiting.is_empty() {
            return;
        }
        self.told.recv_many(&mut self.waiting, MAX_WAITING).await;
    }

    /// Reads everything that has been told into `index`; returns whether it has changed, and not
    /// before every watch has answered once.
    pub fn poll(&mut self, index: &mut Index) -> bool {
        self.rests_until = Instant::now() + REST;
        let (had_begun, was_settled) = (self.watched.begun(), self.watched.settled());
        let mut changed = false;
        let mut told = std::mem::take(&mut self.waiting);
        while let Ok(more) = self.told.try_recv() {
            told.push(more);
            if told.len() >= 2 * MAX_WAITING {
                break;
            }
        }
        let mut pools = self.tasks.is_empty();
        for (watch, change) in told {
            pools |= watch.kind() != Kind::Pod || matches!(change, Change::Listed);
            changed |= self.watched.take(index, &watch, change);
        }
        if pools {
            changed |= self.watched.follow_references(index);
            self.follow_watches();
        }
        changed |= self.watched.settled() && !was_settled;
        self.watched.begun() && (changed || !had_begun)
    }

    /// Lets the objects be told how they stand, now that `fleet` is served. Not while something
    /// that one of them names is still being listed: it would be told that it is missing.
    pub fn served(&self, index: &Index, fleet: &Fleet) {
        if !self.watched.settled() {
            return;
        }
        let (fronts, services) = index.fronts();
        let report = Report { standings: index.standings(fleet), fronts, services };
        self.report.send_if_modified(|known| {
            let changed = **known != report;
            if changed {
                *known = Arc::new(report);
            }
            changed
        });
    }

    /// A task for every watch, and none without.
    fn follow_watches(&mut self) {
        let mut tasks = std::mem::take(&mut self.tasks);
        for watch in self.watched.watches() {
            let task = tasks.remove(watch).unwrap_or_else(|| {
                let follow = follow(self.client.clone(), watch.clone(), self.tell.clone());
                AbortOnDropHandle::new(tokio::spawn(follow))
            });
            self.tasks.insert(watch.clone(), task);
        }
    }
}

async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("neither in a cluster nor a kubeconfig")?;
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).context("the cluster's client")
}

/// Tells what happens to the objects of `watch`, for ever or until nobody listens.
async fn follow(client: Client, watch: Watch, tell: mpsc::Sender<(Watch, Change)>) {
    let kind = watch.kind();
    let resource = resource(kind);
    let api: Api<DynamicObject> = match watch.namespace() {
        None => Api::all_with(client, &resource),
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
    };
    let config = watcher::Config {
        label_selector: watch.selector(),
        field_selector: watch.fields(),
        ..watcher::Config::default()
    };
    let mut events = watcher(api.clone(), config.clone()).boxed();
    let mut pause = FIRST_PAUSE;
    while let Some(event) = events.next().await {
        let (change, wait) = match event {
            Ok(event) => {
                // A list begins before the API server is asked: that alone is no success.
                if !matches!(event, watcher::Event::Init) {
                    pause = FIRST_PAUSE;
                }
                let Some(change) = read(kind, event) else { continue };
                (change, None)
            }
            // What happened since is no longer known, as after a long silence: it is listed anew.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                tokio::time::sleep(FIRST_PAUSE).await;
                continue;
            }
            Err(error) => {
                let failure = failure(&error);
                let absent = failure == Failure::Absent;
                // The first of a row: before the first fleet, nothing else tells of it.
                if !absent && pause == FIRST_PAUSE {
                    tracing::warn!(
                        kind = kind.as_str(),
                        error = chain(&error),
                        "cannot be watched"
                    );
                }
                let wait = if absent { ABSENT_PAUSE } else { pause };
                pause = (2 * pause).min(LONGEST_PAUSE);
                (Change::Failed { failure, reason: chain(&error) }, Some(wait))
            }
        };
        if tell.send((watch.clone(), change)).await.is_err() {
            return;
        }
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
            // From a new list on, and not from a version that a restored etcd may not have.
            events = watcher(api.clone(), config.clone()).boxed();
        }
    }
}

fn read(kind: Kind, event: watcher::Event<DynamicObject>) -> Option<Change> {
    Some(match event {
        watcher::Event::Init => Change::Listing,
        watcher::Event::InitDone => Change::Listed,
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            Change::Present(Box::new(Seen::read(kind, serde_json::to_value(&object).ok()?)?))
        }
        watcher::Event::Delete(object) => {
            let metadata = &object.metadata;
            let name = metadata.name.as_deref()?;
            Change::Gone(watched::key(kind, metadata.namespace.as_deref(), name))
        }
    })
}

/// What the API server says, if anything.
fn failure(error: &watcher::Error) -> Failure {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) =
        error
    else {
        return Failure::Away;
    };
    match error {
        kube::Error::Api(status) if status.code == 404 => Failure::Absent,
        kube::Error::Api(status) if status.code == 403 => Failure::Denied,
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => Failure::Refused,
        _ => Failure::Away,
    }
}

fn chain(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        // Wrappers repeat what they wrap.
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        source = error.source();
    }
    text
}

/// How the API server names a kind: the oldest version that clusters of today serve.
pub(super) fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::Namespace => ("", "v1", "namespaces"),
        Kind::Pod => ("", "v1", "pods"),
        Kind::Service => ("", "v1", "services"),
        Kind::Secret => ("", "v1", "secrets"),
        Kind::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices"),
        Kind::GatewayClass => ("gateway.networking.k8s.io", "v1", "gatewayclasses"),
        Kind::Gateway => ("gateway.networking.k8s.io", "v1", "gateways"),
        Kind::HttpRoute => ("gateway.networking.k8s.io", "v1", "httproutes"),
        // v1 only since Gateway API 1.5.
        Kind::ReferenceGrant => ("gateway.networking.k8s.io", "v1beta1", "referencegrants"),
        Kind::InferencePoolV1Alpha2 => {
            ("inference.networking.x-k8s.io", "v1alpha2", "inferencepools")
        }
        Kind::InferencePoolV1 => ("inference.networking.k8s.io", "v1", "inferencepools"),
        Kind::InferenceTrafficPolicy => {
            ("inferenceextension.alibabacloud.com", "v1alpha1", "inferencetrafficpolicies")
        }
        Kind::BackendTrafficPolicy => {
            ("gateway.envoyproxy.io", "v1alpha1", "backendtrafficpolicies")
        }
    };
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.as_str().to_owned(),
        plural: plural.to_owned(),
    }
}
