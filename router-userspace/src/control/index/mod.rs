//! [`Index`]: holds the objects of all sources and builds a [`Fleet`] from them. It does no I/O and
//! uses neither time nor randomness: the same objects in any order make the same fleet.

mod agents;
mod backend_tls;
mod bootstrap;
mod build;
mod certificates;
mod filters;
mod gateway_services;
mod grants;
mod listeners;
mod matches;
mod ownership;
mod peers;
mod pods;
mod policies;
mod pools;
mod readiness;
mod routes;
mod services;
mod status;

pub(super) use agents::AGENT_LABELS;
pub(super) use backend_tls::AUTHORITIES;
pub(super) use bootstrap::BOOTSTRAP_PORT_ANNOTATION;
pub use bootstrap::DEFAULT_BOOTSTRAP_PORT;
pub(super) use certificates::TLS_ENTRIES;
pub use gateway_services::{Exposure, GatewayService};
pub(super) use gateway_services::{GATEWAY_UID_LABEL, gateway_uid, targets};
pub use ownership::CONTROLLER_NAME;
pub(super) use peers::default_labels as default_gateway_labels;
pub(super) use pools::DEFAULT_ROLE_LABEL;
pub use status::{ObjectStatus, StatusPatch};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use router_core::fleet::{
    EngineInfo, Fleet, ObjectName, Problem, ReadinessGuard, Worker, WorkerKey,
};

use self::build::Build;
use self::pods::{PodSummary, PodView};
use super::objects::{Key, Kind, Object};
use crate::certificates::Certificates;

/// Where an object comes from. If two sources have the same object, the smaller source wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Command-line flags.
    Flags,
    /// A document of a file. Documents are counted from 1.
    File {
        name: Arc<str>,
        document: u32,
    },
    Cluster,
    /// A cluster as a node agent reads it: pools of all controllers are included.
    Node,
}

impl Source {
    /// The name of the source in problems.
    pub fn name(&self) -> Arc<str> {
        match self {
            Source::Flags => "flags".into(),
            Source::File { name, .. } => Arc::clone(name),
            Source::Cluster | Source::Node => "cluster".into(),
        }
    }

    pub fn document(&self) -> Option<u32> {
        match self {
            Source::File { document, .. } => Some(*document),
            Source::Flags | Source::Cluster | Source::Node => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.document() {
            Some(document) => write!(f, "{} document {document}", self.name()),
            None => f.write_str(&self.name()),
        }
    }
}

/// Maximum number of engines whose [`EngineInfo`] is kept: more than pods, since a pod may have
/// several ports and restarts.
const MAX_ENGINE_INFOS: usize = 4 * build::MAX_PODS;

/// An object of one source.
#[derive(Debug)]
struct StoredObject {
    object: Object,
    /// For pods: the properties that every build needs, parsed once.
    summary: Option<PodSummary>,
}

/// The objects of all sources.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<Key, BTreeMap<Source, StoredObject>>,
    /// Problems that the sources report, by file or object.
    source_problems: BTreeMap<Arc<str>, Vec<Problem>>,
    engine_info: HashMap<WorkerKey, Arc<EngineInfo>>,
    /// The namespace of a cluster whose agents are trusted. Anyone who may create pods in another
    /// namespace could label them as agents, and would be sent the token.
    agent_namespace: Option<Arc<str>>,
    /// The labels of the pods that are gateways of the same installation. None are sought if empty.
    gateway_labels: BTreeMap<String, String>,
    exposure: Exposure,
    /// Pods of a cluster that a new list did not have although their deletion was not observed.
    vanished: BTreeSet<ObjectName>,
}

impl Index {
    /// An index for Gateways that clients reach in this way.
    pub fn with_exposure(exposure: Exposure) -> Index {
        Index { exposure, ..Index::default() }
    }

    /// Seeks the gateways of the same installation by these labels of their pods.
    pub fn with_gateways(self, labels: BTreeMap<String, String>) -> Index {
        Index { gateway_labels: labels, ..self }
    }

    /// Adds or replaces an object of `source`. Returns whether the index has changed.
    pub fn apply(&mut self, source: Source, object: Object) -> bool {
        let key = object.key();
        let returned = source == Source::Cluster && self.returned(&key);
        let sources = self.objects.entry(key).or_default();
        if !returned && sources.get(&source).is_some_and(|known| known.object == object) {
            return false;
        }
        let summary = match &object {
            Object::Pod(pod) => Some(PodSummary::read(pod)),
            _ => None,
        };
        sources.insert(source, StoredObject { object, summary });
        true
    }

    /// Removes the object of `source` with this key. Returns whether there was one.
    pub fn remove(&mut self, source: &Source, key: &Key) -> bool {
        if *source == Source::Cluster {
            self.returned(key);
        }
        let Some(sources) = self.objects.get_mut(key) else { return false };
        let removed = sources.remove(source).is_some();
        if sources.is_empty() {
            self.objects.remove(key);
        }
        removed
    }

    /// Whether a pod had vanished, which is forgotten.
    fn returned(&mut self, key: &Key) -> bool {
        key.kind == Kind::Pod && self.vanished.remove(&key.name)
    }

    /// Replaces the problems of a file or of an object, such as syntax errors. Returns whether they
    /// have changed.
    pub fn report(&mut self, about: &Arc<str>, problems: Vec<Problem>) -> bool {
        match problems.is_empty() {
            true => self.source_problems.remove(about).is_some(),
            false => {
                let changed = self.source_problems.get(about) != Some(&problems);
                self.source_problems.insert(Arc::clone(about), problems);
                changed
            }
        }
    }

    /// Stores what an engine reports about itself. Returns whether it has changed.
    pub fn set_engine_info(&mut self, worker: WorkerKey, info: EngineInfo) -> bool {
        if self.engine_info.get(&worker).is_some_and(|known| **known == info) {
            return false;
        }
        if self.engine_info.len() >= MAX_ENGINE_INFOS && !self.engine_info.contains_key(&worker) {
            let uids: std::collections::HashSet<Arc<str>> =
                self.pod_views().map(|view| Arc::clone(&view.summary.uid)).collect();
            self.engine_info.retain(|key, _| uids.contains(&key.uid));
        }
        self.engine_info.insert(worker, Arc::new(info));
        true
    }

    /// Trusts agents of a cluster that run in this namespace, and no others.
    pub(super) fn trust_agents_in(&mut self, namespace: &Arc<str>) {
        self.agent_namespace = Some(Arc::clone(namespace));
    }

    /// Builds the fleet. Workers of `previous` with the same pod, port and address are reused, so
    /// that they keep their leases and health.
    pub fn build(&self, previous: &Fleet) -> Fleet {
        let mut guard = ReadinessGuard::disabled();
        self.build_guarded(previous, &Certificates::default(), &mut guard, 0).0
    }

    /// As [`build`](Index::build), with the certificates of the fleet's listeners. Those of the
    /// previous fleet are reused where their Secret is unchanged. `guard` decides which pods stay
    /// ready although Kubernetes reports that they are not.
    pub fn build_guarded(
        &self,
        previous: &Fleet,
        certificates: &Certificates,
        guard: &mut ReadinessGuard,
        now_ms: u64,
    ) -> (Fleet, Certificates) {
        let not_owned = ownership::not_owned(self);
        let mut build = Build::new(self, previous, &not_owned, certificates, guard, now_ms);
        build.report_duplicates();
        build.read_pods();
        let pools = pools::build(&mut build);
        let policies = policies::read(&mut build);
        build.tls = backend_tls::read(&mut build);
        let pending_listeners = listeners::pending_listeners(&mut build);
        let (listeners, unserved_listeners) =
            routes::attach(&mut build, pending_listeners, &policies);
        let mut certificates = std::mem::take(&mut build.certificates);
        build.guard.finish();
        let fleet = Fleet {
            generation: previous.generation + 1,
            listeners,
            unserved_listeners,
            pools,
            services: std::mem::take(&mut build.services).into_values().collect(),
            agents: agents::find(&mut build),
            gateways: peers::find(&mut build),
            distrusted: distinct(std::mem::take(&mut build.distrusted)),
            problems: build.sorted_problems(),
        };
        certificates.retain_used(&fleet);
        (fleet, certificates)
    }

    /// The statuses that the objects of a cluster should have while `fleet` is served.
    pub fn statuses(&self, fleet: &Fleet) -> Vec<ObjectStatus> {
        status::statuses(self, fleet)
    }

    /// The pods of the winning sources, sorted by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pod_views().map(|view| view.pod)
    }

    fn pod_views(&self) -> impl Iterator<Item = PodView<'_>> {
        self.stored_of_kind(Kind::Pod).filter_map(|(source, stored)| {
            match (&stored.object, &stored.summary) {
                (Object::Pod(pod), Some(summary)) => Some(PodView { source, pod, summary }),
                _ => None,
            }
        })
    }

    /// The selectors of the pools of a cluster: namespace and labels.
    pub(super) fn selections(&self) -> BTreeSet<(Arc<str>, BTreeMap<String, String>)> {
        ownership::selections(self)
    }

    /// The Secrets that listeners of a cluster reference.
    pub(super) fn secrets(&self) -> BTreeSet<ObjectName> {
        certificates::secrets(self)
    }

    /// The ConfigMaps that policies of a cluster reference.
    pub(super) fn config_maps(&self) -> BTreeSet<ObjectName> {
        backend_tls::config_maps(self)
    }

    /// The Services that Gateways need, and the Services that exist for them.
    pub fn gateway_services(&self) -> (Vec<GatewayService>, Vec<Service>) {
        (gateway_services::wanted(self), gateway_services::services(self).cloned().collect())
    }

    /// The object of `source` with this key.
    pub(super) fn stored(&self, source: &Source, key: &Key) -> Option<Object> {
        self.objects.get(key)?.get(source).map(|stored| stored.object.clone())
    }

    /// The objects of a kind from the winning sources, sorted by name.
    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Source, &Object)> {
        self.stored_of_kind(kind).map(|(source, stored)| (source, &stored.object))
    }

    fn stored_of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Source, &StoredObject)> {
        // Keys are sorted by kind first, and the empty name is the smallest.
        let name = ObjectName { namespace: "".into(), name: "".into() };
        let all = self.objects.range(Key { kind, name }..).take_while(move |(k, _)| k.kind == kind);
        all.filter_map(|(_, sources)| sources.first_key_value())
    }

    fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)?.first_key_value().map(|(_, stored)| &stored.object)
    }

    fn duplicates(&self) -> impl Iterator<Item = (&Key, &Source, &Source)> {
        self.objects.iter().flat_map(|(key, sources)| {
            let first = sources.keys().next();
            sources.keys().skip(1).filter_map(move |other| Some((key, first?, other)))
        })
    }
}

/// Each worker once, sorted by name. A worker of two pools is distrusted twice.
fn distinct(mut workers: Vec<Arc<Worker>>) -> Vec<Arc<Worker>> {
    workers.sort_by(|a, b| (&a.name, a.address()).cmp(&(&b.name, b.address())));
    workers.dedup_by(|a, b| Arc::ptr_eq(a, b));
    workers
}

#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod routing_tests;
#[cfg(test)]
mod tests;
