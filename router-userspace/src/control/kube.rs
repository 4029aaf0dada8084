//! The cluster source: one task per watch, all of which update the [`Index`].
//!
//! A watch that fails is retried: the API server may be unavailable, or a CustomResourceDefinition
//! may not be installed. Objects read before stay in effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Client, Config};
use router_core::fleet::{Fleet, Problem};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::api_resource::api_resource;
use super::gateway_service::plan::ServiceTemplate;
use super::index::{Exposure, Index};
use super::objects::Kind;
use super::status_writer::{self, DesiredState};
use super::watch::{ObservedObject, Watch, WatchCache, WatchEvent, WatchFailure, object_key};
use super::write_report::WriteReport;
use crate::config::SourceFlags;
use crate::metrics::Metrics;

/// Maximum number of events in the channel. When it is full, watches wait.
const MAX_PENDING_EVENTS: usize = 4096;
/// Minimum time between two reads of events, so that a burst of events makes one fleet.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Backoff after the first failure of a watch. It doubles with every failure up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Interval between two checks whether a missing kind has been installed.
const ABSENT_KIND_INTERVAL: Duration = Duration::from_secs(2);
/// Read timeout of a watch. The API server sends a bookmark every minute, so a longer silence means
/// that the connection is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// The connection to a cluster's API server, and the watches on it.
pub struct Cluster {
    client: Client,
    cache: WatchCache,
    tasks: BTreeMap<Watch, AbortOnDropHandle<()>>,
    sender: mpsc::Sender<(Watch, WatchEvent)>,
    receiver: mpsc::Receiver<(Watch, WatchEvent)>,
    gateway_labels: BTreeMap<String, String>,
    exposure: Exposure,
    readiness_panic_threshold: u8,
    /// Input of the task that writes statuses and Services.
    desired: watch::Sender<Arc<DesiredState>>,
    _status: Option<AbortOnDropHandle<()>>,
    /// What prevents that task from writing.
    write_problems: Option<watch::Receiver<Vec<Problem>>>,
    /// Events that have been received and not applied yet.
    pending: Vec<(Watch, WatchEvent)>,
    /// Write problems have changed and are not applied yet.
    write_problems_changed: bool,
    /// No events are read before this time.
    debounced_until: Instant,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads the client configuration, from the pod's service account or a kubeconfig. No request
    /// is sent yet.
    ///
    /// # Errors
    /// Neither exists, or the configuration is invalid.
    pub async fn open(flags: &SourceFlags, metrics: &Metrics) -> anyhow::Result<Cluster> {
        let client = client().await?;
        let namespace: Arc<str> = client.default_namespace().into();
        let labels = &flags.exposure.gateway_pod_labels.0;
        let mut cluster = Cluster::new(client.clone(), WatchCache::of_gateway(&namespace, labels));
        cluster.gateway_labels = labels.clone();
        cluster.readiness_panic_threshold = flags.readiness_panic_threshold;
        let flags = &flags.exposure;
        cluster.exposure = match &flags.gateway_service {
            Some(shared) => Exposure::Shared(shared.clone()),
            None => Exposure::Each { namespace: Arc::clone(&namespace) },
        };
        let template = flags.gateway_service.is_none().then(|| ServiceTemplate {
            namespace,
            type_: flags.gateway_service_type.as_str(),
            annotations: flags.gateway_service_annotation.iter().cloned().collect(),
            selector: flags.gateway_pod_labels.0.clone(),
        });
        let (report, problems) = WriteReport::new(metrics);
        let desired = cluster.desired.subscribe();
        let status = tokio::spawn(status_writer::run(client, desired, template, report));
        cluster._status = Some(AbortOnDropHandle::new(status));
        cluster.write_problems = Some(problems);
        Ok(cluster)
    }

    /// A cluster that is only read, through the watches of `cache`.
    ///
    /// # Errors
    /// As [`Cluster::open`].
    pub async fn read_only(cache: WatchCache) -> anyhow::Result<Cluster> {
        Ok(Cluster::new(client().await?, cache))
    }

    fn new(client: Client, cache: WatchCache) -> Cluster {
        let (sender, receiver) = mpsc::channel(MAX_PENDING_EVENTS);
        let (desired, _) = watch::channel(Arc::default());
        Cluster {
            client,
            cache,
            tasks: BTreeMap::new(),
            sender,
            receiver,
            exposure: Exposure::Direct,
            gateway_labels: BTreeMap::new(),
            // An agent reads no readiness.
            readiness_panic_threshold: 100,
            desired,
            _status: None,
            write_problems: None,
            pending: Vec::new(),
            write_problems_changed: false,
            debounced_until: Instant::now(),
        }
    }

    /// The labels of the pods of gateways, this one among them.
    pub(super) fn gateway_labels(&self) -> &BTreeMap<String, String> {
        &self.gateway_labels
    }

    /// The share of a pool's ready pods in percent above which a loss of readiness is distrusted.
    pub fn readiness_panic_threshold(&self) -> u8 {
        self.readiness_panic_threshold
    }

    /// Where clients reach the Gateways.
    pub fn exposure(&self) -> &Exposure {
        &self.exposure
    }

    /// Waits until a watch has sent an event.
    pub async fn changed(&mut self) {
        tokio::time::sleep_until(self.debounced_until).await;
        if self.tasks.is_empty() || !self.pending.is_empty() || self.write_problems_changed {
            return;
        }
        let problems = self.write_problems.as_mut();
        let written = async {
            // An error means that the writer has ended.
            let changed = match problems {
                Some(problems) => problems.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = self.receiver.recv_many(&mut self.pending, MAX_PENDING_EVENTS) => {}
            () = written => self.write_problems_changed = true,
        }
    }

    /// Applies all received events to `index`. Returns whether a new fleet is needed, which is never
    /// the case before every watch has listed its objects once.
    pub fn poll(&mut self, index: &mut Index) -> bool {
        self.debounced_until = Instant::now() + DEBOUNCE;
        let (was_ready, was_settled) = (self.cache.ready(), self.cache.settled());
        let mut changed = false;
        let mut events = std::mem::take(&mut self.pending);
        while let Ok(more) = self.receiver.try_recv() {
            events.push(more);
            if events.len() >= 2 * MAX_PENDING_EVENTS {
                break;
            }
        }
        if std::mem::take(&mut self.write_problems_changed)
            && let Some(problems) = &self.write_problems
        {
            let problems = problems.borrow().clone();
            changed |= index.report(&"writing to the cluster".into(), problems);
        }
        let mut references_changed = self.tasks.is_empty();
        for (watch, change) in events {
            references_changed |= watch.kind() != Kind::Pod || matches!(change, WatchEvent::Listed);
            changed |= self.cache.apply(index, &watch, change);
        }
        if references_changed {
            changed |= self.cache.follow_references(index);
            self.follow_watches();
        }
        changed |= self.cache.settled() && !was_settled;
        self.cache.ready() && (changed || !was_ready)
    }

    /// Passes the statuses and Services that belong to `fleet` to the writer. Skipped while a
    /// referenced object is still being listed, because its status would say that it is missing.
    pub fn served(&self, index: &Index, fleet: &Fleet) {
        if !self.cache.settled() {
            return;
        }
        let (gateway_services, services) = index.gateway_services();
        let statuses = index.statuses(fleet);
        let desired = DesiredState { statuses, gateway_services, services };
        self.desired.send_if_modified(|known| {
            let changed = **known != desired;
            if changed {
                *known = Arc::new(desired);
            }
            changed
        });
    }

    /// Starts a task for every new watch and stops the tasks of removed ones.
    fn follow_watches(&mut self) {
        let mut tasks = std::mem::take(&mut self.tasks);
        for watch in self.cache.watches() {
            let task = tasks.remove(watch).unwrap_or_else(|| {
                let follow = follow(self.client.clone(), watch.clone(), self.sender.clone());
                AbortOnDropHandle::new(tokio::spawn(follow))
            });
            self.tasks.insert(watch.clone(), task);
        }
    }
}

async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("no service account and no kubeconfig found")?;
    config.read_timeout = Some(READ_TIMEOUT);
    Client::try_from(config).context("cannot create the Kubernetes client")
}

/// Sends the events of `watch` until the receiver is dropped.
async fn follow(client: Client, watch: Watch, sender: mpsc::Sender<(Watch, WatchEvent)>) {
    let kind = watch.kind();
    let resource = api_resource(kind);
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
    let mut backoff = MIN_BACKOFF;
    let mut was_absent = false;
    while let Some(event) = events.next().await {
        let (change, wait) = match event {
            Ok(event) => {
                // Init is emitted before the API server has been asked, so it is no success.
                if !matches!(event, watcher::Event::Init) {
                    backoff = MIN_BACKOFF;
                    log_presence(&resource, &mut was_absent, true);
                }
                let Some(change) = read(kind, event) else { continue };
                (change, None)
            }
            // The resource version has expired: the watcher lists all objects again.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                tokio::time::sleep(MIN_BACKOFF).await;
                continue;
            }
            Err(error) => {
                let failure = failure(&error);
                let absent = failure == WatchFailure::Absent;
                if absent {
                    log_presence(&resource, &mut was_absent, false);
                }
                // Logged once per outage; later failures are only a problem in /fleet.
                if !absent && backoff == MIN_BACKOFF {
                    tracing::warn!(
                        kind = kind.as_str(),
                        error = chain(&error),
                        "watch failed, retrying"
                    );
                }
                let wait = if absent { ABSENT_KIND_INTERVAL } else { backoff };
                backoff = (2 * backoff).min(MAX_BACKOFF);
                (WatchEvent::Failed { failure, reason: chain(&error) }, Some(wait))
            }
        };
        if sender.send((watch.clone(), change)).await.is_err() {
            return;
        }
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
            // Starts with a new list: after a restore of etcd, the old version may not exist.
            events = watcher(api.clone(), config.clone()).boxed();
        }
    }
}

/// Logs once that a kind is not installed, and once that it is.
fn log_presence(resource: &ApiResource, was_absent: &mut bool, present: bool) {
    if std::mem::replace(was_absent, !present) != present {
        return;
    }
    let ApiResource { kind, api_version, .. } = resource;
    match present {
        true => tracing::info!(kind, api_version, "kind installed"),
        false => {
            tracing::warn!(kind, api_version, "kind not installed, waiting for its definition")
        }
    }
}

fn read(kind: Kind, event: watcher::Event<DynamicObject>) -> Option<WatchEvent> {
    Some(match event {
        watcher::Event::Init => WatchEvent::Listing,
        watcher::Event::InitDone => WatchEvent::Listed,
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => WatchEvent::Present(
            Box::new(ObservedObject::read(kind, serde_json::to_value(&object).ok()?)?),
        ),
        watcher::Event::Delete(object) => {
            let metadata = &object.metadata;
            let name = metadata.name.as_deref()?;
            WatchEvent::Gone(object_key(kind, metadata.namespace.as_deref(), name))
        }
    })
}

/// Classifies an error of a watch.
fn failure(error: &watcher::Error) -> WatchFailure {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) =
        error
    else {
        return WatchFailure::Unavailable;
    };
    match error {
        kube::Error::Api(status) if status.code == 404 => WatchFailure::Absent,
        kube::Error::Api(status) if status.code == 403 => WatchFailure::Denied,
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => WatchFailure::Refused,
        _ => WatchFailure::Unavailable,
    }
}

fn chain(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        // Some errors repeat the text of their source.
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        source = error.source();
    }
    text
}
