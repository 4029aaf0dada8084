//! [`Index`]: the objects of all sources, and how they make a [`Fleet`]. Pure: no files, no
//! clock, no chance; the same objects in any order make the same fleet.

mod agents;
mod build;
mod certificates;
mod filters;
mod fronts;
mod grants;
mod listeners;
mod matches;
mod ours;
mod pods;
mod policies;
mod pools;
mod routes;
mod services;
mod standing;

pub(super) use agents::AGENT_LABELS;
pub(super) use certificates::TLS_ENTRIES;
pub use fronts::{Exposure, Front};
pub(super) use fronts::{GATEWAY_UID_LABEL, gateway_uid, targets};
pub use ours::CONTROLLER_NAME;
pub(super) use pools::{BOOTSTRAP_PORT_ANNOTATION, DEFAULT_ROLE_LABEL};
pub use standing::{Standing, Told};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use router_core::fleet::{EngineInfo, Fleet, ObjectName, Problem, WorkerKey};

use self::pods::{Card, PodView};
use super::objects::{Key, Kind, Object};
use crate::certificates::Certificates;

/// Where an object comes from. Where two sources have the same object, the lesser one counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Made from flags.
    Flags,
    /// A document of a file, counted from 1.
    File {
        name: Arc<str>,
        document: u32,
    },
    Cluster,
    /// A cluster as a node's agent looks at it: every pool counts, whoever serves it.
    Node,
}

impl Source {
    /// As problems name it.
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

/// Engines whose facts are kept. More than pods have room for several ports and restarts.
const MAX_FACTS: usize = 4 * pods::MAX_PODS;

/// An object, and what is read of it once where it is a pod.
#[derive(Debug)]
struct Held {
    object: Object,
    card: Option<Card>,
}

/// The objects of all sources.
#[derive(Debug, Default)]
pub struct Index {
    objects: BTreeMap<Key, BTreeMap<Source, Held>>,
    /// What the sources themselves complain about, by file or object.
    reports: BTreeMap<Arc<str>, Vec<Problem>>,
    facts: HashMap<WorkerKey, Arc<EngineInfo>>,
    /// The namespace of a cluster whose agents are listened to. Whoever may make pods elsewhere may
    /// label them as agents, and would be sent the token.
    agents_of: Option<Arc<str>>,
    exposure: Exposure,
}

impl Index {
    /// An index of a cluster's objects, whose Gateways clients reach in this way.
    pub fn exposed(exposure: Exposure) -> Index {
        Index { exposure, ..Index::default() }
    }

    /// Adds an object, or replaces the one that `source` had under the same key. Returns whether
    /// that was news.
    pub fn apply(&mut self, source: Source, object: Object) -> bool {
        let sources = self.objects.entry(object.key()).or_default();
        if sources.get(&source).is_some_and(|known| known.object == object) {
            return false;
        }
        let card = match &object {
            Object::Pod(pod) => Some(Card::read(pod)),
            _ => None,
        };
        sources.insert(source, Held { object, card });
        true
    }

    /// Forgets what `source` had under `key`. Returns whether there was anything.
    pub fn remove(&mut self, source: &Source, key: &Key) -> bool {
        let Some(sources) = self.objects.get_mut(key) else { return false };
        let removed = sources.remove(source).is_some();
        if sources.is_empty() {
            self.objects.remove(key);
        }
        removed
    }

    /// Replaces what a file, or an object of a cluster, complains about: what does not parse and
    /// the like. Returns whether that was news.
    pub fn report(&mut self, about: &Arc<str>, problems: Vec<Problem>) -> bool {
        match problems.is_empty() {
            true => self.reports.remove(about).is_some(),
            false => {
                let news = self.reports.get(about) != Some(&problems);
                self.reports.insert(Arc::clone(about), problems);
                news
            }
        }
    }

    /// Remembers what an engine said of itself. Returns whether that was news.
    pub fn set_facts(&mut self, worker: WorkerKey, facts: EngineInfo) -> bool {
        if self.facts.get(&worker).is_some_and(|known| **known == facts) {
            return false;
        }
        if self.facts.len() >= MAX_FACTS && !self.facts.contains_key(&worker) {
            let uids: std::collections::HashSet<Arc<str>> =
                self.pod_views().map(|view| Arc::clone(&view.card.uid)).collect();
            self.facts.retain(|key, _| uids.contains(&key.uid));
        }
        self.facts.insert(worker, Arc::new(facts));
        true
    }

    /// Listens to the agents of a cluster that run in this namespace, and to no other.
    pub(super) fn trust_agents_of(&mut self, namespace: &Arc<str>) {
        self.agents_of = Some(Arc::clone(namespace));
    }

    /// Makes the fleet. Workers that `previous` has are reused where pod, port and address are
    /// the same, so that their leases and health go on.
    pub fn build(&self, previous: &Fleet) -> Fleet {
        build::fleet(self, previous, &Certificates::default()).0
    }

    /// As [`build`](Index::build), with the certificates of the fleet's listeners. Those of the
    /// previous fleet are reused where their Secret is unchanged.
    pub fn build_with_certificates(
        &self,
        previous: &Fleet,
        certificates: &Certificates,
    ) -> (Fleet, Certificates) {
        build::fleet(self, previous, certificates)
    }

    /// What the objects of a cluster are to be told about themselves, now that `fleet` is served.
    pub fn standings(&self, fleet: &Fleet) -> Vec<Standing> {
        standing::standings(self, fleet)
    }

    /// The pods that count, in the order of their names.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pod_views().map(|view| view.pod)
    }

    fn pod_views(&self) -> impl Iterator<Item = PodView<'_>> {
        self.held_of(Kind::Pod).filter_map(|(source, held)| match (&held.object, &held.card) {
            (Object::Pod(pod), Some(card)) => Some(PodView { source, pod, card }),
            _ => None,
        })
    }

    /// Which pods the pools of a cluster select: namespaces with labels.
    pub(super) fn selections(&self) -> BTreeSet<(Arc<str>, BTreeMap<String, String>)> {
        ours::selections(self)
    }

    /// The Secrets that listeners of a cluster name.
    pub(super) fn secrets(&self) -> BTreeSet<ObjectName> {
        certificates::secrets(self)
    }

    /// The Gateways that need a Service, and the Services that there are for it.
    pub fn fronts(&self) -> (Vec<Front>, Vec<Service>) {
        (fronts::wanted(self), fronts::services(self).cloned().collect())
    }

    /// What `source` has under `key`.
    pub(super) fn held(&self, source: &Source, key: &Key) -> Option<Object> {
        self.objects.get(key)?.get(source).map(|held| held.object.clone())
    }

    /// The objects of a kind that count, in the order of their names.
    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Source, &Object)> {
        self.held_of(kind).map(|(source, held)| (source, &held.object))
    }

    fn held_of(&self, kind: Kind) -> impl Iterator<Item = (&Source, &Held)> {
        // Keys sort by kind first, and no name sorts before the empty one.
        let name = ObjectName { namespace: "".into(), name: "".into() };
        let all = self.objects.range(Key { kind, name }..).take_while(move |(k, _)| k.kind == kind);
        all.filter_map(|(_, sources)| sources.first_key_value())
    }

    fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)?.first_key_value().map(|(_, held)| &held.object)
    }

    fn duplicates(&self) -> impl Iterator<Item = (&Key, &Source, &Source)> {
        self.objects.iter().flat_map(|(key, sources)| {
            let first = sources.keys().next();
            sources.keys().skip(1).filter_map(move |other| Some((key, first?, other)))
        })
    }
}

#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod routing_tests;
#[cfg(test)]
mod tests;
