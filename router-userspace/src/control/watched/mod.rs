//! What watches of a cluster have told, and how it comes into the [`Index`]. Pure: changes in,
//! objects out.
//!
//! Pods are watched pool by pool, so that a cluster's other pods cost nothing. A pod of two pools
//! comes over two watches that may be ahead of each other: the newest version that a watch has
//! seen counts, and the pod is gone when no watch holds it. Secrets are watched one by one, as
//! listeners name them: no other is read.

mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use router_core::fleet::{ObjectName, Problem};

pub use self::seen::Seen;
use super::document::Content;
use super::index::{AGENT_LABELS, Index, Source};
use super::objects::{Key, Kind};

/// Kinds that are watched whole.
const KINDS: [Kind; 11] = [
    Kind::Namespace,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::ReferenceGrant,
    Kind::InferencePoolV1Alpha2,
    Kind::InferencePoolV1,
    Kind::InferenceTrafficPolicy,
    Kind::BackendTrafficPolicy,
    Kind::Service,
    Kind::EndpointSlice,
];
/// What a node's agent needs to know of pods: their ports and roles.
const KINDS_OF_NODE: [Kind; 3] =
    [Kind::InferencePoolV1Alpha2, Kind::InferencePoolV1, Kind::InferenceTrafficPolicy];

/// One watch: all objects of a kind, the pods of a namespace with these labels, those of a node, or
/// one Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    Kind(Kind),
    Pods { namespace: Arc<str>, labels: BTreeMap<String, String> },
    Node(Arc<str>),
    Secret(ObjectName),
}

impl Watch {
    pub fn kind(&self) -> Kind {
        match self {
            Watch::Kind(kind) => *kind,
            Watch::Pods { .. } | Watch::Node(_) => Kind::Pod,
            Watch::Secret(_) => Kind::Secret,
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
            Watch::Secret(name) => Some(format!("metadata.name={}", name.name)),
        }
    }

    /// The namespace that it is about, if not all.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Watch::Kind(_) | Watch::Node(_) => None,
            Watch::Pods { namespace, .. } => Some(namespace),
            Watch::Secret(name) => Some(&name.namespace),
        }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub enum Change {
    /// A list begins: what it does not hold in the end is gone.
    Listing,
    /// The list is complete.
    Listed,
    /// An object of the list, or one that is new or has changed.
    Present(Box<Seen>),
    Gone(Key),
    /// Nothing was told.
    Failed {
        failure: Failure,
        reason: String,
    },
}

/// Why a watch tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The API server could not be asked.
    Away,
    /// It does not have this kind (yet).
    Absent,
    /// It does not let us.
    Denied,
    /// It does not take the question, as of a selector that is none.
    Refused,
}

/// One watch's part of what is known.
#[derive(Debug, Default)]
struct State {
    /// It has told something: a whole list, or that there is nothing to list.
    answered: bool,
    /// What the list that is under way has held so far.
    listing: Option<BTreeSet<Key>>,
    /// What it holds, with the versions.
    held: BTreeMap<Key, u64>,
}

/// All watches.
#[derive(Debug)]
pub struct Watched {
    source: Source,
    watches: BTreeMap<Watch, State>,
    /// Watches of pods that are there whatever the pools select.
    always: BTreeSet<Watch>,
    /// Whether the pods that pools select are watched.
    follows_pools: bool,
    /// Whose agents are listened to.
    agents_of: Option<Arc<str>>,
    /// Every watch has answered once: before, a fleet would lack what is not listed yet.
    begun: bool,
}

impl Default for Watched {
    fn default() -> Watched {
        Watched::new(Source::Cluster, &KINDS, BTreeSet::new(), true)
    }
}

impl Watched {
    fn new(
        source: Source,
        kinds: &[Kind],
        always: BTreeSet<Watch>,
        follows_pools: bool,
    ) -> Watched {
        let kinds = kinds.iter().map(|kind| Watch::Kind(*kind));
        let all = kinds.chain(always.iter().cloned()).map(|watch| (watch, State::default()));
        let watches = all.collect();
        Watched { source, watches, always, follows_pools, agents_of: None, begun: false }
    }

    /// What a gateway watches, the agents in its own namespace among it.
    pub fn of_gateway(namespace: &str) -> Watched {
        let labels = AGENT_LABELS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let agents = Watch::Pods { namespace: namespace.into(), labels: labels.into() };
        let watched = Watched::new(Source::Cluster, &KINDS, BTreeSet::from([agents]), true);
        Watched { agents_of: Some(namespace.into()), ..watched }
    }

    /// What a node's agent watches: the node's pods, and with `peers` the pods that pools select,
    /// wherever they are.
    pub fn of_node(node: &str, peers: bool) -> Watched {
        let own = BTreeSet::from([Watch::Node(node.into())]);
        Watched::new(Source::Node, &KINDS_OF_NODE, own, peers)
    }

    /// The watches that there should be.
    pub fn watches(&self) -> impl Iterator<Item = &Watch> {
        self.watches.keys()
    }

    /// Takes what a watch tells into `index`; returns whether the index has changed.
    pub fn take(&mut self, index: &mut Index, watch: &Watch, change: Change) -> bool {
        // What a watch still tells that is wanted no longer.
        let Some(state) = self.watches.get_mut(watch) else { return false };
        match change {
            Change::Listing => {
                state.listing = Some(BTreeSet::new());
                false
            }
            Change::Listed => {
                state.answered = true;
                let listed = state.listing.take().unwrap_or_default();
                let gone: Vec<Key> =
                    state.held.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                let mut changed = index.report(&about(watch), Vec::new());
                for key in gone {
                    changed |= self.forget(index, watch, &key);
                }
                changed
            }
            Change::Present(seen) => self.present(index, watch, *seen),
            Change::Gone(key) => self.forget(index, watch, &key),
            Change::Failed { failure, reason } => {
                let absent = failure == Failure::Absent;
                // Where Secrets are not ours to read, their listeners are not served; others are.
                let denied = failure == Failure::Denied && watch.kind() == Kind::Secret;
                let refused = failure == Failure::Refused && !matches!(watch, Watch::Kind(_));
                state.answered |= absent || denied || refused;
                // A kind that this cluster does not have is no problem.
                let problem = Problem {
                    source: self.source.name(),
                    document: None,
                    object: None,
                    field: None,
                    code: "Unreadable",
                    reason: format!("{}: {reason}; what was read before goes on", about(watch))
                        .into(),
                };
                index.report(&about(watch), (!absent).then_some(problem).into_iter().collect())
            }
        }
    }

    /// Follows the references of `index`: one watch for the pods that a pool selects, one for each
    /// Secret that a listener names. Watches that are wanted no longer go when all others have
    /// answered, so that a pool whose selector changes is never without its pods. Returns whether
    /// the index has changed.
    pub fn follow_references(&mut self, index: &mut Index) -> bool {
        if let Some(namespace) = &self.agents_of {
            index.trust_agents_of(namespace);
        }
        let selections = index.selections().into_iter().filter(|_| self.follows_pools);
        let pods = selections.map(|(namespace, labels)| Watch::Pods { namespace, labels });
        let secrets = index.secrets().into_iter().map(Watch::Secret);
        let wanted: BTreeSet<Watch> =
            pods.chain(secrets).chain(self.always.iter().cloned()).collect();
        for watch in &wanted {
            if !self.watches.contains_key(watch) {
                self.watches.insert(watch.clone(), State::default());
            }
        }
        // What was never told anything, and is wanted no longer, is not waited for.
        self.watches.retain(|watch, state| {
            state.answered || matches!(watch, Watch::Kind(_)) || wanted.contains(watch)
        });
        if !self.settled() {
            return false;
        }
        let left: Vec<Watch> = self
            .watches
            .keys()
            .filter(|watch| !matches!(watch, Watch::Kind(_)) && !wanted.contains(*watch))
            .cloned()
            .collect();
        let mut changed = false;
        for watch in left {
            let state = self.watches.get(&watch);
            let held: Vec<Key> =
                state.map(|state| state.held.keys().cloned().collect()).unwrap_or_default();
            for key in held {
                changed |= self.forget(index, &watch, &key);
            }
            self.watches.remove(&watch);
            changed |= index.report(&about(&watch), Vec::new());
        }
        changed
    }

    /// Whether every watch has answered, now or before.
    pub fn begun(&mut self) -> bool {
        self.begun |= self.settled();
        self.begun
    }

    /// Whether every watch has answered, those of new references too.
    pub fn settled(&self) -> bool {
        self.watches.values().all(|state| state.answered)
    }

    fn present(&mut self, index: &mut Index, watch: &Watch, seen: Seen) -> bool {
        let Seen { key, version, content, mut problems } = seen;
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
            Content::Foreign => false,
            Content::Broken => {
                if index.held(&self.source, &key).is_some() {
                    for problem in &mut problems {
                        problem.reason =
                            format!("{}; its last good version is kept", problem.reason).into();
                    }
                }
                false
            }
        };
        index.report(&about, problems) | changed
    }

    fn forget(&mut self, index: &mut Index, watch: &Watch, key: &Key) -> bool {
        if let Some(state) = self.watches.get_mut(watch) {
            state.held.remove(key);
        }
        if self.others(watch, key).any(|state| state.held.contains_key(key)) {
            return false;
        }
        let about: Arc<str> = key.to_string().into();
        index.remove(&self.source, key) | index.report(&about, Vec::new())
    }

    /// The other watches over which this object may come.
    fn others<'s>(&'s self, watch: &'s Watch, key: &'s Key) -> impl Iterator<Item = &'s State> {
        self.watches.iter().filter_map(move |(other, state)| {
            let holds = match other {
                Watch::Kind(_) | Watch::Secret(_) => false,
                Watch::Pods { namespace, .. } => *namespace == key.name.namespace,
                Watch::Node(_) => true,
            };
            (holds && other != watch && key.kind == Kind::Pod).then_some(state)
        })
    }
}

/// How problems name a watch.
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
    }
}

/// The key of an object that is gone.
pub fn key(kind: Kind, namespace: Option<&str>, name: &str) -> Key {
    let namespace = namespace.filter(|_| kind.namespaced()).unwrap_or("default").into();
    Key { kind, name: ObjectName { namespace, name: name.into() } }
}

#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod slice_tests;
#[cfg(test)]
mod tests;
