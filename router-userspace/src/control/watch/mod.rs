//! [`WatchCache`]: applies the events of all watches of a cluster to the [`Index`]. Does no I/O.
//!
//! Pods are watched per pool, so that other pods of the cluster cost nothing. A pod of two pools is
//! delivered by two watches, which may be at different versions: the newest version is used, and the
//! pod is removed when no watch holds it. Secrets and ConfigMaps are watched one by one, as
//! listeners and policies reference them. No others are read.

mod observed_object;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use router_core::fleet::{ObjectName, Problem};

pub use self::observed_object::ObservedObject;
use super::document::Content;
use super::index::{AGENT_LABELS, Index, Source};
use super::objects::{Key, Kind};

/// Kinds of which a gateway watches every object.
const KINDS: [Kind; 12] = [
    Kind::Namespace,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::ReferenceGrant,
    Kind::InferencePoolV1Alpha2,
    Kind::InferencePoolV1,
    Kind::InferenceTrafficPolicy,
    Kind::BackendTrafficPolicy,
    Kind::BackendTlsPolicy,
    Kind::Service,
    Kind::EndpointSlice,
];
/// Kinds of which a node agent watches every object, to know the ports and roles of pods.
const AGENT_KINDS: [Kind; 3] =
    [Kind::InferencePoolV1Alpha2, Kind::InferencePoolV1, Kind::InferenceTrafficPolicy];

/// One watch: all objects of a kind, the pods of a namespace with these labels, the pods of a node,
/// or one Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    Kind(Kind),
    Pods { namespace: Arc<str>, labels: BTreeMap<String, String> },
    Node(Arc<str>),
    Secret(ObjectName),
    ConfigMap(ObjectName),
}

impl Watch {
    pub fn kind(&self) -> Kind {
        match self {
            Watch::Kind(kind) => *kind,
            Watch::Pods { .. } | Watch::Node(_) => Kind::Pod,
            Watch::Secret(_) => Kind::Secret,
            Watch::ConfigMap(_) => Kind::ConfigMap,
        }
    }

    /// The label selector of a list request.
    pub fn selector(&self) -> Option<String> {
        let Watch::Pods { labels, .. } = self else { return None };
        let pairs = labels.iter().map(|(name, value)| format!("{name}={value}"));
        Some(pairs.collect::<Vec<_>>().join(","))
    }

    /// The field selector of a list request.
    pub fn fields(&self) -> Option<String> {
        match self {
            Watch::Kind(_) | Watch::Pods { .. } => None,
            Watch::Node(node) => Some(format!("spec.nodeName={node}")),
            Watch::Secret(name) | Watch::ConfigMap(name) => {
                Some(format!("metadata.name={}", name.name))
            }
        }
    }

    /// The namespace that is watched, or `None` for all.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Watch::Kind(_) | Watch::Node(_) => None,
            Watch::Pods { namespace, .. } => Some(namespace),
            Watch::Secret(name) | Watch::ConfigMap(name) => Some(&name.namespace),
        }
    }
}

/// An event of a watch.
#[derive(Debug)]
pub enum WatchEvent {
    /// A list begins. Objects that are not in it are removed when it is complete.
    Listing,
    /// The list is complete.
    Listed,
    /// An object of the list, or an object that was created or changed.
    Present(Box<ObservedObject>),
    Gone(Key),
    /// The watch failed.
    Failed {
        failure: WatchFailure,
        reason: String,
    },
}

/// Why a watch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFailure {
    /// The API server could not be reached.
    Unavailable,
    /// The API server does not have this kind: its definition is not installed.
    Absent,
    /// RBAC forbids it.
    Denied,
    /// The API server rejects the request, for example an invalid selector.
    Refused,
}

/// What one watch has delivered.
#[derive(Debug, Default)]
struct WatchState {
    /// It has completed a list, or the API server has answered that there is nothing to list.
    answered: bool,
    /// The objects so far of a list that is not complete.
    listing: Option<BTreeSet<Key>>,
    /// The objects that it holds, with their versions.
    held: BTreeMap<Key, u64>,
}

/// All watches of a cluster and the objects that they have delivered.
#[derive(Debug)]
pub struct WatchCache {
    source: Source,
    watches: BTreeMap<Watch, WatchState>,
    /// Watches of pods that exist independently of pools.
    permanent: BTreeSet<Watch>,
    /// Whether the pods that pools select are watched.
    watches_pools: bool,
    /// Namespace whose agents are trusted.
    agent_namespace: Option<Arc<str>>,
    /// Every watch has listed its objects once. Before that, a fleet would be incomplete.
    ready: bool,
}

impl Default for WatchCache {
    fn default() -> WatchCache {
        WatchCache::new(Source::Cluster, &KINDS, BTreeSet::new(), true)
    }
}

impl WatchCache {
    fn new(
        source: Source,
        kinds: &[Kind],
        permanent: BTreeSet<Watch>,
        watches_pools: bool,
    ) -> WatchCache {
        let kinds = kinds.iter().map(|kind| Watch::Kind(*kind));
        let all =
            kinds.chain(permanent.iter().cloned()).map(|watch| (watch, WatchState::default()));
        let watches = all.collect();
        WatchCache {
            source,
            watches,
            permanent,
            watches_pools,
            agent_namespace: None,
            ready: false,
        }
    }

    /// The watches of a gateway, including the agents and the gateways in its own namespace.
    pub fn of_gateway(namespace: &str, gateways: &BTreeMap<String, String>) -> WatchCache {
        let labels = AGENT_LABELS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let agents = Watch::Pods { namespace: namespace.into(), labels: labels.into() };
        let gateways = Watch::Pods { namespace: namespace.into(), labels: gateways.clone() };
        let own = BTreeSet::from([agents, gateways]);
        let cache = WatchCache::new(Source::Cluster, &KINDS, own, true);
        WatchCache { agent_namespace: Some(namespace.into()), ..cache }
    }

    /// The watches of a node agent: the node's pods, and with `peers` the pods that pools select on
    /// any node.
    pub fn of_node(node: &str, peers: bool) -> WatchCache {
        let own = BTreeSet::from([Watch::Node(node.into())]);
        WatchCache::new(Source::Node, &AGENT_KINDS, own, peers)
    }

    /// The watches that should run.
    pub fn watches(&self) -> impl Iterator<Item = &Watch> {
        self.watches.keys()
    }

    /// Applies an event of a watch to `index`. Returns whether the index has changed.
    pub fn apply(&mut self, index: &mut Index, watch: &Watch, change: WatchEvent) -> bool {
        // A late event of a watch that has been removed.
        let Some(state) = self.watches.get_mut(watch) else { return false };
        match change {
            WatchEvent::Listing => {
                state.listing = Some(BTreeSet::new());
                false
            }
            WatchEvent::Listed => {
                state.answered = true;
                let listed = state.listing.take().unwrap_or_default();
                let gone: Vec<Key> =
                    state.held.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                let mut changed = index.report(&about(watch), Vec::new());
                for key in gone {
                    changed |= self.forget(index, watch, &key, Index::vanish);
                }
                changed
            }
            WatchEvent::Present(observed) => self.present(index, watch, *observed),
            WatchEvent::Gone(key) => self.forget(index, watch, &key, Index::remove),
            WatchEvent::Failed { failure, reason } => {
                let absent = failure == WatchFailure::Absent;
                // If RBAC forbids them, only the listeners and Services that need them are not served.
                let named = matches!(watch, Watch::Secret(_) | Watch::ConfigMap(_));
                let denied = failure == WatchFailure::Denied && named;
                let refused = failure == WatchFailure::Refused && !matches!(watch, Watch::Kind(_));
                state.answered |= absent || denied || refused;
                // A kind that is not installed is not a problem.
                let problem = Problem {
                    source: self.source.name(),
                    document: None,
                    object: None,
                    field: None,
                    code: "Unreadable",
                    reason: format!(
                        "{}: {reason}; objects read before stay in effect",
                        about(watch)
                    )
                    .into(),
                };
                index.report(&about(watch), (!absent).then_some(problem).into_iter().collect())
            }
        }
    }

    /// Adds a watch for the pods of each pool, for each Secret that a listener references and for each
    /// ConfigMap that a policy references, and removes watches that are no longer needed. A watch is removed only when all others have
    /// listed, so that a pool whose selector changes never loses its pods. Returns whether the index
    /// has changed.
    pub fn follow_references(&mut self, index: &mut Index) -> bool {
        if let Some(namespace) = &self.agent_namespace {
            index.trust_agents_in(namespace);
        }
        let selections = index.selections().into_iter().filter(|_| self.watches_pools);
        let pods = selections.map(|(namespace, labels)| Watch::Pods { namespace, labels });
        let secrets = index.secrets().into_iter().map(Watch::Secret);
        let config_maps = index.config_maps().into_iter().map(Watch::ConfigMap);
        let wanted: BTreeSet<Watch> =
            pods.chain(secrets).chain(config_maps).chain(self.permanent.iter().cloned()).collect();
        for watch in &wanted {
            if !self.watches.contains_key(watch) {
                self.watches.insert(watch.clone(), WatchState::default());
            }
        }
        // A watch that has not listed and is no longer needed must not delay the others.
        self.watches.retain(|watch, state| {
            state.answered || matches!(watch, Watch::Kind(_)) || wanted.contains(watch)
        });
        if !self.settled() {
            return false;
        }
        let unneeded: Vec<Watch> = self
            .watches
            .keys()
            .filter(|watch| !matches!(watch, Watch::Kind(_)) && !wanted.contains(*watch))
            .cloned()
            .collect();
        let mut changed = false;
        for watch in unneeded {
            let state = self.watches.get(&watch);
            let held: Vec<Key> =
                state.map(|state| state.held.keys().cloned().collect()).unwrap_or_default();
            for key in held {
                changed |= self.forget(index, &watch, &key, Index::remove);
            }
            self.watches.remove(&watch);
            changed |= index.report(&about(&watch), Vec::new());
        }
        changed
    }

    /// Whether every watch has listed its objects at some time.
    pub fn ready(&mut self) -> bool {
        self.ready |= self.settled();
        self.ready
    }

    /// Whether every current watch has listed its objects.
    pub fn settled(&self) -> bool {
        self.watches.values().all(|state| state.answered)
    }

    fn present(&mut self, index: &mut Index, watch: &Watch, observed: ObservedObject) -> bool {
        let ObservedObject { key, version, content, mut problems } = observed;
        let newest_of_others = self
            .others(watch, &key)
            .filter_map(|state| state.held.get(&key))
            .max()
            .copied()
            .unwrap_or_default();
        if let Some(state) = self.watches.get_mut(watch) {
            state.held.insert(key.clone(), version);
            if let Some(listing) = &mut state.listing {
                listing.insert(key.clone());
            }
        }
        if version < newest_of_others {
            return false;
        }
        let about: Arc<str> = key.to_string().into();
        let changed = match content {
            Content::Object(object) => index.apply(self.source.clone(), *object),
            Content::Unhandled => false,
            Content::Broken(stand_in) => {
                let kept = index.stored(&self.source, &key);
                if kept.is_some_and(|object| !object.is_stand_in()) {
                    for problem in &mut problems {
                        problem.reason =
                            format!("{}; the last valid version stays in effect", problem.reason)
                                .into();
                    }
                    false
                } else {
                    stand_in.is_some_and(|object| index.apply(self.source.clone(), *object))
                }
            }
        };
        index.report(&about, problems) | changed
    }

    /// Removes an object from the index by `remove`, unless another watch holds it.
    fn forget(
        &mut self,
        index: &mut Index,
        watch: &Watch,
        key: &Key,
        remove: fn(&mut Index, &Source, &Key) -> bool,
    ) -> bool {
        if let Some(state) = self.watches.get_mut(watch) {
            state.held.remove(key);
        }
        if self.others(watch, key).any(|state| state.held.contains_key(key)) {
            return false;
        }
        let about: Arc<str> = key.to_string().into();
        remove(index, &self.source, key) | index.report(&about, Vec::new())
    }

    /// The other watches that may deliver this object.
    fn others<'s>(
        &'s self,
        watch: &'s Watch,
        key: &'s Key,
    ) -> impl Iterator<Item = &'s WatchState> {
        self.watches.iter().filter_map(move |(other, state)| {
            let holds = match other {
                Watch::Kind(_) | Watch::Secret(_) | Watch::ConfigMap(_) => false,
                Watch::Pods { namespace, .. } => *namespace == key.name.namespace,
                Watch::Node(_) => true,
            };
            (holds && other != watch && key.kind == Kind::Pod).then_some(state)
        })
    }
}

/// The name of a watch in problems.
fn about(watch: &Watch) -> Arc<str> {
    match watch {
        Watch::Kind(Kind::InferencePoolV1Alpha2) => "watching InferencePool (v1alpha2)".into(),
        Watch::Kind(kind) => format!("watching {}", kind.as_str()).into(),
        Watch::Node(node) => format!("watching Pods of node {node}").into(),
        Watch::Pods { namespace, .. } => {
            format!("watching Pods of {namespace} with {}", watch.selector().unwrap_or_default())
                .into()
        }
        Watch::Secret(name) => format!("watching Secret {name}").into(),
        Watch::ConfigMap(name) => format!("watching ConfigMap {name}").into(),
    }
}

/// The key of a deleted object.
pub fn object_key(kind: Kind, namespace: Option<&str>, name: &str) -> Key {
    let namespace = namespace.filter(|_| kind.namespaced()).unwrap_or("default").into();
    Key { kind, name: ObjectName { namespace, name: name.into() } }
}

#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod slice_tests;
#[cfg(test)]
mod tests;
