//! [`Pool`]: the workers of one InferencePool, their roles, and which of them are compatible.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::{EngineInfo, PoolHistory, Ranks, RateEstimators, Verdict, Worker, cache_of};
use crate::fnv::fnv1a_nonzero;

/// `namespace/name` of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a worker does in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Prefill,
    Decode,
    /// Prefill and decode: an ordinary server in a pool without disaggregation.
    Unified,
}

/// The lifecycle phase of a pod, from its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Ready,
    NotReady,
    /// Marked for deletion: it finishes its requests and gets no new ones.
    Draining,
}

/// A worker's membership in a pool. Each snapshot creates it again; the worker outlives it.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    pub worker: Arc<Worker>,
    pub role: Role,
    pub phase: Phase,
    /// The bootstrap server where decodes request this prefill's KV cache. `None` while its port is
    /// neither configured nor reported.
    pub bootstrap: Option<SocketAddr>,
    /// Pods of one group are preferred for each other.
    pub group: Option<Arc<str>>,
    /// `None` until the engine has answered a probe.
    pub engine_info: Option<Arc<EngineInfo>>,
    /// The node that the pod runs on, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Arc<str>>,
}

impl Member {
    /// Returns the data-parallel ranks that a request can be assigned to.
    pub fn ranks(&self) -> Option<Ranks> {
        Ranks::of(self.engine_info.as_deref()?, self.role)
    }

    /// Whether requests may be sent to this member, whatever its health: as a last resort also if it
    /// is down. A prefill whose bootstrap server cannot be reached is no last resort, since decode
    /// would wait for its KV cache in vain.
    pub fn is_eligible(&self) -> bool {
        let meets = || self.bootstrap.is_some() && !self.worker.health.is_unregistered();
        self.phase == Phase::Ready && (self.role != Role::Prefill || meets())
    }

    /// Whether a request that is sent to this member is expected to be served.
    pub fn can_serve(&self) -> bool {
        self.is_eligible() && self.worker.health.verdict() != Verdict::Down
    }

    /// Whether this member is ready and gets no requests because of its role or its bootstrap port. A
    /// bootstrap server that cannot be reached may also have ended or not have started yet.
    pub fn is_misconfigured(&self) -> bool {
        let unregistered = || self.role == Role::Prefill && self.worker.health.is_unregistered();
        self.phase == Phase::Ready && (self.contradiction().is_some() || unregistered())
    }

    /// Why the engine's own `disaggregation_mode` forbids the member's role.
    pub(super) fn contradiction(&self) -> Option<String> {
        let info = self.engine_info.as_deref().filter(|info| info.contradicts(self.role))?;
        let mode = info.disaggregation_mode.as_deref().unwrap_or_default();
        let runs_as = if mode == "null" { "an ordinary server" } else { mode };
        Some(match self.role {
            Role::Prefill => format!("its role is prefill, and the engine runs as {runs_as}"),
            Role::Decode => format!("its role is decode, and the engine runs as {runs_as}"),
            Role::Unified => format!(
                "the engine runs as {runs_as}, and no InferenceTrafficPolicy with profile.pd \
                 names the pool"
            ),
        })
    }
}

/// Engines that can use each other's KV caches, as indices into [`Pool::members`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompatibleSet {
    /// Names of the model in requests. Empty means unknown.
    pub models: Vec<Arc<str>>,
    pub prefill: Vec<usize>,
    pub decode: Vec<usize>,
    pub unified: Vec<usize>,
    /// The prefix caches of `prefill` by [`cache_of`], one per rank that a request can be assigned to,
    /// sorted. Each has the position of its worker in `prefill`.
    #[serde(skip)]
    pub caches: Vec<(u64, usize)>,
}

impl CompatibleSet {
    /// Returns the position in `prefill` of the worker of `cache`.
    pub fn holder(&self, cache: u64) -> Option<usize> {
        let at = self.caches.binary_search_by_key(&cache, |(cache, _)| *cache).ok()?;
        Some(self.caches[at].1)
    }
}

/// A member that gets no requests, or a selected pod that is not a worker, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// `namespace/pod`.
    pub worker: Arc<str>,
    pub reason: String,
}

/// How a pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Disaggregated: every request uses a prefill and a decode.
    Pd,
    /// Every worker serves requests alone.
    Single,
}

/// The workers of one InferencePool.
#[derive(Clone, Debug, Serialize)]
pub struct Pool {
    pub name: ObjectName,
    pub profile: Profile,
    /// The engine as in `modelServerRuntime`; `sglang` if the field is absent.
    pub runtime: Arc<str>,
    /// The engines use HTTP/2 without TLS (`appProtocol: kubernetes.io/h2c`).
    pub h2c: bool,
    /// How its pods are selected, in words: the selector, and the label of the role.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub selection: Arc<str>,
    pub members: Vec<Member>,
    pub compatible_sets: Vec<CompatibleSet>,
    pub excluded: Vec<Excluded>,
    /// The groups of `members` as numbers, in the same order; 0 is no group.
    #[serde(skip)]
    pub groups: Vec<u64>,
    /// The estimators over all its engines. They outlive the snapshot.
    #[serde(skip)]
    pub rate_estimators: Arc<RateEstimators>,
    /// What is remembered of the pool from one snapshot to the next.
    #[serde(skip)]
    pub history: Arc<PoolHistory>,
}

impl Pool {
    /// Sorts `members` into compatible sets and lists the members that have none, with the reason.
    ///
    /// An engine that has not reported its info joins the set if there is only one. Among several sets
    /// it is excluded, since an incompatible pair is worse than an idle engine.
    pub fn new(name: ObjectName, profile: Profile, members: Vec<Member>) -> Pool {
        let mut pool = Pool {
            name,
            profile,
            runtime: "sglang".into(),
            h2c: false,
            selection: "".into(),
            groups: members.iter().map(|m| m.group.as_deref().map_or(0, group_number)).collect(),
            members,
            compatible_sets: Vec::new(),
            excluded: Vec::new(),
            rate_estimators: Arc::new(RateEstimators::of_pool()),
            history: Arc::default(),
        };
        let contradictions: Vec<_> = pool.members.iter().map(Member::contradiction).collect();
        let is_reported = |member: &Member| {
            // An engine without `/server_info` has an empty info.
            member.engine_info.as_deref().is_some_and(|info| *info != EngineInfo::default())
        };
        let (reported, unreported): (Vec<usize>, Vec<usize>) = (0..pool.members.len())
            .filter(|&i| contradictions[i].is_none())
            .partition(|&i| is_reported(&pool.members[i]));
        for (index, reason) in contradictions.iter().enumerate() {
            if let Some(reason) = reason {
                pool.exclude(index, reason);
            }
        }
        // One member per distinct info in a set. Comparing with all members would be quadratic in the
        // pool, and most engines of a set report the same info.
        let mut representatives: Vec<Vec<usize>> = Vec::new();
        for index in reported {
            pool.add_to_compatible_set(index, &mut representatives);
        }
        if pool.compatible_sets.is_empty() && !unreported.is_empty() {
            pool.compatible_sets.push(CompatibleSet::default());
        }
        for index in unreported {
            if pool.compatible_sets.len() == 1 {
                pool.add_to_set(0, index);
            } else {
                pool.exclude(
                    index,
                    "has not reported its model yet, and the pool has several models",
                );
            }
        }
        pool.exclude_incomplete_sets();
        pool.list_caches();
        pool
    }

    /// Whether a set of compatible workers has a ready worker of each role.
    pub fn has_ready_workers(&self) -> bool {
        let ready = |ids: &[usize]| ids.iter().any(|&id| self.members[id].phase == Phase::Ready);
        self.compatible_sets.iter().any(|set| match self.profile {
            Profile::Pd => ready(&set.prefill) && ready(&set.decode),
            Profile::Single => ready(&set.unified),
        })
    }

    /// Whether the pool can serve a request: some compatible engines, one of every role that a request
    /// needs, take requests and are not down.
    pub fn can_serve(&self) -> bool {
        let any = |ids: &[usize]| ids.iter().any(|&id| self.members[id].can_serve());
        let sets = &mut self.compatible_sets.iter();
        sets.any(|set| any(&set.unified) || (any(&set.prefill) && any(&set.decode)))
    }

    fn add_to_compatible_set(&mut self, index: usize, representatives: &mut Vec<Vec<usize>>) {
        let Some(info) = &self.members[index].engine_info else { return };
        let of = |index: &usize| self.members[*index].engine_info.as_deref();
        let found = representatives.iter().position(|members| {
            members.iter().filter_map(of).all(|other| {
                other.is_compatible_with(info) && other.served_model_name == info.served_model_name
            })
        });
        let at = found.unwrap_or_else(|| {
            self.compatible_sets.push(CompatibleSet::default());
            representatives.push(Vec::new());
            representatives.len() - 1
        });
        if !representatives[at]
            .iter()
            .filter_map(of)
            .any(|other| other.has_same_compatibility_fields(info))
        {
            representatives[at].push(index);
        }
        self.add_to_set(at, index);
    }

    fn add_to_set(&mut self, at: usize, index: usize) {
        let set = &mut self.compatible_sets[at];
        match self.members[index].role {
            Role::Prefill => set.prefill.push(index),
            Role::Decode => set.decode.push(index),
            Role::Unified => set.unified.push(index),
        }
        let Some(info) = &self.members[index].engine_info else { return };
        for name in [&info.served_model_name, &info.model_path].into_iter().flatten() {
            if !set.models.iter().any(|known| **known == **name) {
                set.models.push(name.as_str().into());
            }
        }
    }

    fn list_caches(&mut self) {
        for set in &mut self.compatible_sets {
            let members = set.prefill.iter().map(|&index| &self.members[index]).enumerate();
            let caches = members.flat_map(|(at, member)| {
                let count = member.ranks().map_or(1, |ranks| ranks.count);
                (0..count).map(move |rank| (cache_of(member.worker.identity, rank), at))
            });
            set.caches = caches.collect();
            set.caches.sort_unstable();
        }
    }

    fn exclude(&mut self, index: usize, reason: &str) {
        let worker = Arc::clone(&self.members[index].worker.name);
        self.excluded.push(Excluded { worker, reason: reason.to_owned() });
    }

    fn exclude_incomplete_sets(&mut self) {
        if self.profile != Profile::Pd {
            return;
        }
        for set in std::mem::take(&mut self.compatible_sets) {
            if set.prefill.is_empty() || set.decode.is_empty() {
                let missing = if set.prefill.is_empty() { "prefill" } else { "decode" };
                let info = self.describe(&set);
                for &index in set.prefill.iter().chain(&set.decode) {
                    self.exclude(
                        index,
                        &format!("no {missing} of this pool is compatible with {info}"),
                    );
                }
            }
            self.compatible_sets.push(set);
        }
    }

    fn describe(&self, set: &CompatibleSet) -> String {
        let mut members = set.prefill.iter().chain(&set.decode);
        let reported = members.find_map(|&index| self.members[index].engine_info.as_ref());
        let Some(info) = reported else { return "it".to_owned() };
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
        let allocation = info.decode_allocation_policy.as_deref();
        let allocation = allocation.map_or(String::new(), |it| format!(", decode allocation {it}"));
        format!(
            "model {}, KV dtype {}, page size {}{allocation}",
            text(&info.model_path),
            text(&info.kv_cache_dtype),
            info.page_size.map_or("unknown".to_owned(), |size| size.to_string()),
        )
    }
}

/// Hash of a group's label, never 0: the scheduler compares numbers, not texts.
fn group_number(label: &str) -> u64 {
    fnv1a_nonzero(label.bytes())
}

/// Formats an address as the host of a URL or of `bootstrap_host`: IPv6 is in brackets.
pub fn host_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::WorkerKey;
    use super::*;

    pub(in crate::fleet) fn member(name: &str, role: Role, info: Option<EngineInfo>) -> Member {
        let key = WorkerKey { uid: name.into(), address: ([127, 0, 0, 1], 8000).into() };
        let worker = Arc::new(Worker::new(key, name));
        let info = info.map(Arc::new);
        let (bootstrap, group, node) = (None, None, None);
        Member { worker, role, phase: Phase::Ready, bootstrap, group, engine_info: info, node }
    }

    fn model(path: &str, page_size: u32) -> Option<EngineInfo> {
        let model_path = Some(path.to_owned());
        Some(EngineInfo { model_path, page_size: Some(page_size), ..EngineInfo::default() })
    }

    fn pool(members: Vec<Member>) -> Pool {
        let name = ObjectName { namespace: "default".into(), name: "pool".into() };
        Pool::new(name, Profile::Pd, members)
    }

    #[test]
    fn a_rollout_with_two_page_sizes_has_two_compatible_sets() {
        let pool = pool(vec![
            member("p-old", Role::Prefill, model("qwen", 1)),
            member("p-new", Role::Prefill, model("qwen", 64)),
            member("d-new", Role::Decode, model("qwen", 64)),
        ]);
        assert_eq!(pool.compatible_sets.len(), 2);
        assert_eq!(
            (pool.compatible_sets[1].prefill.as_slice(), pool.compatible_sets[1].decode.as_slice()),
            (&[1][..], &[2][..])
        );
        assert_eq!(pool.excluded.len(), 1);
        assert_eq!(&*pool.excluded[0].worker, "p-old");
        assert!(pool.excluded[0].reason.contains("page size 1"), "{}", pool.excluded[0].reason);
    }

    #[test]
    fn the_model_of_a_request_picks_among_the_models_of_a_pool() {
        let pool = pool(vec![
            member("p-a", Role::Prefill, model("a", 1)),
            member("d-a", Role::Decode, model("a", 1)),
            member("p-b", Role::Prefill, model("b", 1)),
            member("d-b", Role::Decode, model("b", 1)),
        ]);
        let serving = |name| pool.serving(name).map(|set| set.decode.clone()).collect::<Vec<_>>();
        assert_eq!(serving(Some("b")), [vec![3]]);
        assert!(serving(Some("c")).is_empty());
        assert!(serving(None).is_empty());
    }

    #[test]
    fn engines_that_run_in_another_role_are_excluded_and_named() {
        let runs_as = |mode: &str| {
            let disaggregation_mode = Some(mode.to_owned());
            Some(EngineInfo { disaggregation_mode, ..model("m", 1).unwrap_or_default() })
        };
        let pool = pool(vec![
            member("p", Role::Prefill, runs_as("prefill")),
            member("d", Role::Decode, runs_as("decode")),
            member("swapped", Role::Prefill, runs_as("decode")),
            member("ordinary", Role::Decode, runs_as("null")),
            member("says-nothing", Role::Decode, model("m", 1)),
        ]);
        let set = &pool.compatible_sets[0];
        assert_eq!((set.prefill.as_slice(), set.decode.as_slice()), (&[0][..], &[1, 4][..]));
        let excluded: Vec<String> =
            pool.excluded.iter().map(|one| format!("{}: {}", one.worker, one.reason)).collect();
        assert_eq!(
            excluded,
            [
                "swapped: its role is prefill, and the engine runs as decode",
                "ordinary: its role is decode, and the engine runs as an ordinary server",
            ]
        );
    }

    #[test]
    fn a_pool_can_serve_while_an_eligible_pair_is_not_down() {
        let bootstrap = Some(([127, 0, 0, 1], 8998).into());
        let prefill = Member { bootstrap, ..member("p", Role::Prefill, None) };
        let pool = pool(vec![prefill, member("d", Role::Decode, None)]);
        assert!(pool.can_serve(), "nothing speaks against engines that were not probed");
        let [prefill, decode] = [0, 1].map(|id| &pool.members[id].worker.health);
        for _ in 0..super::super::ERRORS_TO_OPEN {
            decode.errored(0);
        }
        assert!(pool.can_serve(), "a failing engine is tried if there is no other");
        decode.unreachable();
        assert!(!pool.can_serve());
        decode.probe_passed(10_000);
        prefill.bootstrap_refused();
        assert!(!pool.can_serve() && !pool.members[0].is_eligible());
    }

    #[test]
    fn a_pool_of_one_model_serves_every_name() {
        let members = vec![
            member("p", Role::Prefill, model("/models/Qwen3-32B/", 1)),
            member("d", Role::Decode, None),
        ];
        assert_eq!(pool(members).serving(Some("/models/Qwen3-32B")).count(), 1);
    }

    #[test]
    fn groups_are_numbers_and_every_rank_s_cache_is_found() {
        let ranked = |name: &str| {
            let info = EngineInfo {
                dp_size: Some(2),
                follow_bootstrap_room: Some(true),
                ..model("m", 1).unwrap_or_default()
            };
            Member { group: Some("rack-1".into()), ..member(name, Role::Prefill, Some(info)) }
        };
        let decode = Member { group: Some("rack-1".into()), ..member("d", Role::Decode, None) };
        let pool = pool(vec![ranked("a"), decode, ranked("b"), member("c", Role::Prefill, None)]);
        assert!(pool.groups[0] > 0 && pool.groups[..3].iter().all(|g| *g == pool.groups[0]));
        assert_eq!(pool.groups[3], 0);
        let set = &pool.compatible_sets[0];
        assert_eq!(set.caches.len(), 5, "two ranks each, and one without info");
        let at =
            |index: usize, rank| set.holder(cache_of(pool.members[index].worker.identity, rank));
        assert_eq!([at(0, 0), at(0, 1), at(2, 1), at(3, 0)], [Some(0), Some(0), Some(1), Some(2)]);
        assert_eq!(at(1, 0), None, "a decode has no prefix cache");
    }

    #[test]
    fn an_engine_without_info_is_excluded_among_several_models() {
        let pool = pool(vec![
            member("p-a", Role::Prefill, model("a", 1)),
            member("d-b", Role::Decode, model("b", 1)),
            member("d-x", Role::Decode, None),
        ]);
        assert!(pool.excluded.iter().any(|excluded| &*excluded.worker == "d-x"));
        assert!(pool.compatible_sets.iter().all(|set| !set.decode.contains(&2)));
    }
}
