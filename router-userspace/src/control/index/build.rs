//! [`Build`]: the state that the steps of a build share.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use router_core::fleet::{
    Fleet, ObjectName, Pool, Problem, RateEstimators, ReadinessGuard, ServiceBackend, Worker,
    WorkerKey,
};

use super::super::objects::{Key, Kind, Object, object_name};
use super::backend_tls::TlsPolicies;
use super::pods::PodView;
use super::{Index, Source};
use crate::certificates::Certificates;

/// Maximum number of problems in a fleet. One more problem counts the rest.
const MAX_PROBLEMS: usize = 1_000;
/// Maximum number of pods in a fleet, in the order of their names. The rest is ignored and counted.
pub(super) const MAX_PODS: usize = 10_000;

/// The state that the steps of a build share.
pub(super) struct Build<'a> {
    pub(super) index: &'a Index,
    /// The fleet that is served now.
    pub(super) previous: &'a Fleet,
    /// Objects of a cluster that other controllers serve.
    pub(super) not_owned: &'a HashSet<Key>,
    /// Pods by namespace.
    pub(super) pods: HashMap<Arc<str>, Vec<PodView<'a>>>,
    pub(super) pools: HashMap<(Kind, ObjectName), Arc<Pool>>,
    pub(super) services: std::collections::BTreeMap<(ObjectName, u16), Arc<ServiceBackend>>,
    pub(super) tls: TlsPolicies,
    /// Workers of the previous fleet.
    workers: HashMap<&'a WorkerKey, &'a Arc<Worker>>,
    /// Workers that the previous fleet does not have.
    joined: HashMap<WorkerKey, Arc<Worker>>,
    /// What has been learned about the previous fleet's pools, by pool name.
    experience: HashMap<ObjectName, Arc<RateEstimators>>,
    problems: Vec<Problem>,
    /// Certificates of the previous fleet, and new ones.
    pub(super) certificates: Certificates,
    pub(super) guard: &'a mut ReadinessGuard,
    pub(super) now_ms: u64,
    /// Workers that are candidates although Kubernetes reports them as not ready.
    pub(super) distrusted: Vec<Arc<Worker>>,
}

/// An invalid field: its path below the compiled object, a problem code, and a reason.
pub(super) type FieldError = (String, &'static str, String);

/// The object that a problem is about.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) source: &'a Source,
    pub(super) kind: Kind,
    pub(super) name: &'a ObjectName,
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Key { kind: self.kind, name: self.name.clone() }.fmt(f)
    }
}

impl<'a> Subject<'a> {
    pub(super) fn of_pod(pod: &PodView<'a>) -> Subject<'a> {
        Subject { source: pod.source, kind: Kind::Pod, name: &pod.summary.name }
    }
}

impl<'a> Build<'a> {
    /// A build without a result of any step yet.
    pub(super) fn new(
        index: &'a Index,
        previous: &'a Fleet,
        not_owned: &'a HashSet<Key>,
        certificates: &Certificates,
        guard: &'a mut ReadinessGuard,
        now_ms: u64,
    ) -> Build<'a> {
        Build {
            index,
            previous,
            not_owned,
            pods: HashMap::new(),
            pools: HashMap::new(),
            services: std::collections::BTreeMap::new(),
            tls: TlsPolicies::default(),
            workers: previous.workers().map(|known| (&known.key, known)).collect(),
            joined: HashMap::new(),
            experience: previous
                .pools
                .iter()
                .map(|pool| (pool.name.clone(), Arc::clone(&pool.rate_estimators)))
                .collect(),
            problems: source_problems(index, not_owned),
            certificates: certificates.clone(),
            guard,
            now_ms,
            distrusted: Vec::new(),
        }
    }

    /// The objects of a kind that this controller serves, sorted by name.
    pub(super) fn owned(
        &self,
        kind: Kind,
    ) -> impl Iterator<Item = (&'a Source, &'a Object)> + use<'a> {
        let not_owned = self.not_owned;
        self.index.of_kind(kind).filter(move |(_, object)| !not_owned.contains(&object.key()))
    }

    /// Adds a problem of `subject`.
    pub(super) fn add_problem(
        &mut self,
        subject: Subject<'_>,
        field: impl AsRef<str>,
        code: &'static str,
        reason: impl Into<Arc<str>>,
    ) {
        let field = field.as_ref();
        let key = Key { kind: subject.kind, name: subject.name.clone() };
        self.problems.push(Problem {
            source: subject.source.name(),
            document: subject.source.document(),
            object: Some(key.to_string().into()),
            field: (!field.is_empty()).then(|| field.into()),
            code,
            reason: reason.into(),
        });
    }

    /// The worker of this pod, address and port: that of the previous fleet, or a new one.
    pub(super) fn worker(&mut self, key: WorkerKey, name: &Arc<str>) -> Arc<Worker> {
        if let Some(known) = self.workers.get(&key) {
            return Arc::clone(known);
        }
        let entry = self.joined.entry(key.clone());
        Arc::clone(entry.or_insert_with(|| Arc::new(Worker::new(key, Arc::clone(name)))))
    }

    /// What has been learned about the pool of this name, initially nothing.
    pub(super) fn experience(&mut self, pool: &ObjectName) -> Arc<RateEstimators> {
        let entry = self.experience.entry(pool.clone());
        Arc::clone(entry.or_insert_with(|| Arc::new(RateEstimators::of_pool())))
    }

    /// Sorts the pods by namespace.
    pub(super) fn read_pods(&mut self) {
        let index = self.index;
        for (count, view) in index.pod_views().enumerate() {
            if count == MAX_PODS {
                let reason = format!(
                    "is the first of {} pods over the limit of {MAX_PODS}; they are ignored",
                    index.pod_views().count() - count
                );
                self.add_problem(Subject::of_pod(&view), "", "TooMany", reason);
                break;
            }
            match self.pods.get_mut(&view.summary.name.namespace) {
                Some(pods) => pods.push(view),
                None => _ = self.pods.insert(Arc::clone(&view.summary.name.namespace), vec![view]),
            }
        }
    }

    /// Adds a problem for each object that two sources have.
    pub(super) fn report_duplicates(&mut self) {
        let index = self.index;
        for (key, first, other) in index.duplicates() {
            let subject = Subject { source: other, kind: key.kind, name: &key.name };
            let reason = format!("is also in {first}, which is used; this one is ignored");
            self.add_problem(subject, "", "Duplicate", reason);
        }
    }

    /// All problems, sorted, and cut off at [`MAX_PROBLEMS`].
    pub(super) fn sorted_problems(mut self) -> Vec<Problem> {
        self.problems.sort();
        self.problems.dedup();
        if let Some(more @ 1..) = self.problems.len().checked_sub(MAX_PROBLEMS) {
            self.problems.truncate(MAX_PROBLEMS);
            self.problems.push(Problem {
                source: "pd-router".into(),
                document: None,
                object: None,
                field: None,
                code: "TooMany",
                reason: format!("{more} more problems are not listed").into(),
            });
        }
        self.problems
    }
}

/// The policies of a kind, each with its source and name: the oldest first, then by name. Of two with one
/// target the first is used.
pub(super) fn oldest_first<'i, P>(
    index: &'i Index,
    kind: Kind,
    of: impl Fn(&'i Object) -> Option<(&'i ObjectMeta, &'i P)>,
) -> Vec<(&'i Source, ObjectName, &'i P)> {
    let found = index.of_kind(kind).filter_map(|(source, object)| Some((source, of(object)?)));
    let mut all: Vec<_> = found
        .map(|(source, (meta, policy))| {
            let age = created(meta);
            ((age.is_none(), age, object_name(meta)), source, policy)
        })
        .collect();
    all.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    all.into_iter().map(|((_, _, name), source, policy)| (source, name, policy)).collect()
}

/// The creation time of an object in seconds since 1970, or `None` if it has none, as in files.
pub(super) fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

/// The problems that sources report, without those of objects that other controllers serve.
fn source_problems(index: &Index, not_owned: &HashSet<Key>) -> Vec<Problem> {
    let all = index.source_problems.values().flatten();
    if not_owned.is_empty() {
        return all.cloned().collect();
    }
    let cluster = Source::Cluster.name();
    let others: HashSet<String> = not_owned.iter().map(Key::to_string).collect();
    let ours = all.filter(|problem| {
        let object = problem.object.as_deref();
        problem.source != cluster || object.is_none_or(|object| !others.contains(object))
    });
    ours.cloned().collect()
}
