//! [`Pool`]: the workers of one InferencePool, their roles, and which of them fit together.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::{EngineInfo, Ranks, RateEstimators, Worker, cache_of};
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
    /// Both at once: an ordinary server of a pool without a PD split.
    Unified,
}

/// Where a pod is in its life, as its status tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Ready,
    NotReady,
    /// Marked for deletion: finishes what it holds, takes nothing new.
    Draining,
}

/// One worker's place in a pool. The worker lives on; this is made anew with each snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    pub worker: Arc<Worker>,
    pub role: Role,
    pub phase: Phase,
    /// Where decode asks for this prefill's KV cache.
    pub bootstrap: Option<SocketAddr>,
    /// Pods of one group are preferred for each other.
    pub group: Option<Arc<str>>,
    /// `None` until the engine has been asked.
    pub engine_info: Option<Arc<EngineInfo>>,
    /// The node that the pod runs on, where that is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Arc<str>>,
}

impl Member {
    /// The data-parallel ranks that a request can be sent to.
    pub fn ranks(&self) -> Option<Ranks> {
        Ranks::of(self.engine_info.as_deref()?, self.role)
    }
}

/// Engines whose KV caches fit together; indices into [`Pool::members`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompatibleSet {
    /// Names that a request may call this model by. Empty: not told.
    pub models: Vec<Arc<str>>,
    pub prefill: Vec<usize>,
    pub decode: Vec<usize>,
    pub unified: Vec<usize>,
    /// The prefix caches of `prefill` by [`cache_of`], one for each rank that can be steered to,
    /// sorted; each with the position in `prefill` of whose it is.
    #[serde(skip)]
    pub caches: Vec<(u64, usize)>,
}

impl CompatibleSet {
    /// The position in `prefill` of whose cache it is.
    pub fn holder(&self, cache: u64) -> Option<usize> {
        let at = self.caches.binary_search_by_key(&cache, |(cache, _)| *cache).ok()?;
        Some(self.caches[at].1)
    }
}

/// A member that no request reaches, or a selected pod that is no worker, and why.
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
    /// Prefill and decode apart: every request takes a pair.
    Pd,
    /// Every worker serves a request alone.
    Single,
}

/// The workers of one InferencePool.
#[derive(Clone, Debug, Serialize)]
pub struct Pool {
    pub name: ObjectName,
    pub profile: Profile,
    /// The engine, as `modelServerRuntime` spells it. `sglang` where nothing is said.
    pub runtime: Arc<str>,
    /// The engines speak HTTP/2 without TLS (`appProtocol: kubernetes.io/h2c`).
    pub h2c: bool,
    pub members: Vec<Member>,
    pub compatible_sets: Vec<CompatibleSet>,
    pub excluded: Vec<Excluded>,
    /// The groups of `members` as numbers, which a choice compares; 0 is none.
    #[serde(skip)]
    pub groups: Vec<u64>,
    /// What was learned of its engines together. It outlives the snapshot.
    #[serde(skip)]
    pub rate_estimators: Arc<RateEstimators>,
}

impl Pool {
    /// Sorts `members` into sets that fit together; what fits nowhere is named.
    ///
    /// An engine that has not told its facts joins the only set there is; among several it
    /// is left out, since a wrong pair is worse than an idle engine.
    pub fn new(name: ObjectName, profile: Profile, members: Vec<Member>) -> Pool {
        let mut pool = Pool {
            name,
            profile,
            runtime: "sglang".into(),
            h2c: false,
            groups: members.iter().map(|m| m.group.as_deref().map_or(0, group_number)).collect(),
            members,
            compatible_sets: Vec::new(),
            excluded: Vec::new(),
            rate_estimators: Arc::new(RateEstimators::of_pool()),
        };
        let (told, silent): (Vec<usize>, Vec<usize>) =
            (0..pool.members.len()).partition(|&i| pool.members[i].engine_info.is_some());
        // One member of each kind that a set holds: comparing with all would cost the square of
        // a large pool, and most engines of a set tell the same.
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for index in told {
            pool.place(index, &mut kinds);
        }
        if pool.compatible_sets.is_empty() && !silent.is_empty() {
            pool.compatible_sets.push(CompatibleSet::default());
        }
        for index in silent {
            if pool.compatible_sets.len() == 1 {
                pool.join(0, index);
            } else {
                pool.leave_out(index, "has not told its model yet, and the pool holds several");
            }
        }
        pool.name_half_pairs();
        pool.name_caches();
        pool
    }

    /// The sets that serve `model`. Where the pool holds one set, it serves every name, since
    /// the engine itself ignores the name; among several, an unknown name means none.
    pub fn serving<'a>(
        &'a self,
        model: Option<&'a str>,
    ) -> impl Iterator<Item = &'a CompatibleSet> + 'a {
        let same = |a: &CompatibleSet, b: &CompatibleSet| a.models == b.models;
        let one_model = self.compatible_sets.windows(2).all(|pair| same(&pair[0], &pair[1]));
        self.compatible_sets.iter().filter(move |fit| {
            one_model || model.is_none_or(|name| fit.models.iter().any(|m| &**m == name))
        })
    }

    fn place(&mut self, index: usize, kinds: &mut Vec<Vec<usize>>) {
        let Some(facts) = &self.members[index].engine_info else { return };
        let of = |seat: &usize| self.members[*seat].engine_info.as_deref();
        let found = kinds.iter().position(|seats| {
            seats.iter().filter_map(of).all(|other| {
                other.is_compatible_with(facts)
                    && other.served_model_name == facts.served_model_name
            })
        });
        let at = found.unwrap_or_else(|| {
            self.compatible_sets.push(CompatibleSet::default());
            kinds.push(Vec::new());
            kinds.len() - 1
        });
        if !kinds[at].iter().filter_map(of).any(|other| other.same_kind(facts)) {
            kinds[at].push(index);
        }
        self.join(at, index);
    }

    fn join(&mut self, at: usize, index: usize) {
        let fit = &mut self.compatible_sets[at];
        match self.members[index].role {
            Role::Prefill => fit.prefill.push(index),
            Role::Decode => fit.decode.push(index),
            Role::Unified => fit.unified.push(index),
        }
        let Some(facts) = &self.members[index].engine_info else { return };
        for name in [&facts.served_model_name, &facts.model_path].into_iter().flatten() {
            if !fit.models.iter().any(|known| **known == **name) {
                fit.models.push(name.as_str().into());
            }
        }
    }

    fn name_caches(&mut self) {
        for fit in &mut self.compatible_sets {
            let members = fit.prefill.iter().map(|&index| &self.members[index]).enumerate();
            let caches = members.flat_map(|(at, member)| {
                let count = member.ranks().map_or(1, |ranks| ranks.count);
                (0..count).map(move |rank| (cache_of(member.worker.identity, rank), at))
            });
            fit.caches = caches.collect();
            fit.caches.sort_unstable();
        }
    }

    fn leave_out(&mut self, index: usize, reason: &str) {
        let worker = Arc::clone(&self.members[index].worker.name);
        self.excluded.push(Excluded { worker, reason: reason.to_owned() });
    }

    fn name_half_pairs(&mut self) {
        if self.profile != Profile::Pd {
            return;
        }
        for fit in std::mem::take(&mut self.compatible_sets) {
            if fit.prefill.is_empty() || fit.decode.is_empty() {
                let missing = if fit.prefill.is_empty() { "prefill" } else { "decode" };
                let facts = self.describe(&fit);
                for &index in fit.prefill.iter().chain(&fit.decode) {
                    self.leave_out(index, &format!("no {missing} of this pool fits {facts}"));
                }
            }
            self.compatible_sets.push(fit);
        }
    }

    fn describe(&self, fit: &CompatibleSet) -> String {
        let mut seats = fit.prefill.iter().chain(&fit.decode);
        let told = seats.find_map(|&index| self.members[index].engine_info.as_ref());
        let Some(facts) = told else { return "it".to_owned() };
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
        format!(
            "model {}, KV dtype {}, page size {}",
            text(&facts.model_path),
            text(&facts.kv_cache_dtype),
            facts.page_size.map_or("unknown".to_owned(), |size| size.to_string()),
        )
    }
}

/// Hash of a group's label, never 0: the scheduler compares numbers, not texts.
fn group_number(label: &str) -> u64 {
    fnv1a_nonzero(label.bytes())
}

/// The host of a URL or of `bootstrap_host`: IPv6 stands in brackets.
pub fn host_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::WorkerKey;
    use super::*;

    fn member(name: &str, role: Role, facts: Option<EngineInfo>) -> Member {
        let key = WorkerKey { uid: name.into(), port: 8000 };
        let worker = Arc::new(Worker::new(key, name, ([127, 0, 0, 1], 8000).into()));
        let facts = facts.map(Arc::new);
        let (bootstrap, group, node) = (None, None, None);
        Member { worker, role, phase: Phase::Ready, bootstrap, group, engine_info: facts, node }
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
    fn a_rollout_that_mixes_page_sizes_pairs_like_with_like() {
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
        let serving = |name| pool.serving(name).map(|fit| fit.decode.clone()).collect::<Vec<_>>();
        assert_eq!(serving(Some("b")), [vec![3]]);
        assert!(serving(Some("c")).is_empty());
        assert_eq!(serving(None).len(), 2);
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
    fn groups_are_numbers_and_every_rank_has_a_cache_that_is_found() {
        let ranked = |name: &str| {
            let facts = EngineInfo {
                dp_size: Some(2),
                follow_bootstrap_room: Some(true),
                ..model("m", 1).unwrap_or_default()
            };
            Member { group: Some("rack-1".into()), ..member(name, Role::Prefill, Some(facts)) }
        };
        let decode = Member { group: Some("rack-1".into()), ..member("d", Role::Decode, None) };
        let pool = pool(vec![ranked("a"), decode, ranked("b"), member("c", Role::Prefill, None)]);
        assert!(pool.groups[0] > 0 && pool.groups[..3].iter().all(|g| *g == pool.groups[0]));
        assert_eq!(pool.groups[3], 0);
        let fit = &pool.compatible_sets[0];
        assert_eq!(fit.caches.len(), 5, "two ranks each, and one that has told nothing");
        let at =
            |index: usize, rank| fit.holder(cache_of(pool.members[index].worker.identity, rank));
        assert_eq!([at(0, 0), at(0, 1), at(2, 1), at(3, 0)], [Some(0), Some(0), Some(1), Some(2)]);
        assert_eq!(at(1, 0), None, "a decode is nobody's cache");
    }

    #[test]
    fn an_engine_that_told_nothing_is_left_out_among_several_models() {
        let pool = pool(vec![
            member("p-a", Role::Prefill, model("a", 1)),
            member("d-b", Role::Decode, model("b", 1)),
            member("d-x", Role::Decode, None),
        ]);
        assert!(pool.excluded.iter().any(|unfit| &*unfit.worker == "d-x"));
        assert!(pool.compatible_sets.iter().all(|fit| !fit.decode.contains(&2)));
    }
}
