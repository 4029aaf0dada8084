//! [`Placer`]: chooses the workers of one attempt and leases them.
//!
//! A candidate is ready, of the best health that is to be had, and has capacity. Health may be a
//! last resort; capacity never is.

use std::net::SocketAddr;
use std::sync::Arc;

use router_core::fleet::{
    CompatibleSet, EngineInfo, Lease, Load, MAX_RANKS, Member, OnRelease, PolledLoad, Pool,
    Profile, QueueHead, RankAssignment, Ranks, Role, Steering, Verdict, Weight, Worker,
    WorkerLimits,
};
use router_core::pair::Pair;
use router_core::schedule::{
    self, AgentTrust, Candidate, CandidateSet, ChoiceInput, Chosen, Draw, SampleOrder,
};
use router_core::sglang::BootstrapAddress;

use super::explain::ChoiceExplanation;
use super::observe::{self, Prediction};
use crate::config::LimitFlags;
use crate::scheduler_view::SchedulerView;

/// What a request needs of the workers that serve it.
#[derive(Clone, Debug)]
pub(crate) struct PlacementRequest {
    pub model: Option<String>,
    pub weight: Weight,
    /// Workers on which this request has failed: chosen again only if no other is up.
    pub avoid: Vec<Arc<Worker>>,
    /// The only worker that can serve the request, because it has the response that the request
    /// continues.
    pub only: Option<Arc<Worker>>,
    /// Hashes of the prompt's blocks; empty if the policy does not use prefixes.
    pub blocks: Vec<u64>,
}

/// The leased workers of one attempt.
#[derive(Debug)]
pub(crate) enum Placement {
    /// A prefill and a decode worker, and the bootstrap address at which they meet.
    Pair {
        leases: Pair<Lease>,
        bootstrap: BootstrapAddress,
        /// The predicted times, if the policy predicts.
        prediction: Option<Prediction>,
        /// The data-parallel ranks to use, on engines that can be steered to one.
        ranks: Pair<Option<RankAssignment>>,
        /// Why this pair was chosen, if the policy predicts.
        explanation: Option<Arc<ChoiceExplanation>>,
    },
    Single(Lease),
}

impl Placement {
    /// Every lease. The lease of the worker that answers the client (decode's, or the single one) is
    /// the last.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        match self {
            Placement::Pair { leases, .. } => [Some(&leases.prefill), Some(&leases.decode)],
            Placement::Single(lease) => [None, Some(lease)],
        }
        .into_iter()
        .flatten()
    }
}

/// Why no worker could be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlacementError {
    /// Every worker that could serve the request is full: waiting helps.
    Full,
    /// No worker of the pool is ready to serve the request.
    NotReady,
    /// The pool serves other models, or several and the request names none.
    UnknownModel,
}

/// Leases that were taken under the queue's lock; [`Placer::finish`] makes a [`Placement`] of them.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be allocated under the lock")]
pub(crate) enum Leased {
    Pair { leases: Pair<Lease>, refs: Pair<CandidateRef>, meet: SocketAddr, chosen: Chosen },
    Single(Lease),
}

/// Memory for the candidates of a choice, reused by the next choice.
#[derive(Debug, Default)]
pub(crate) struct CandidateBuffers {
    prefill: Vec<Candidate>,
    decode: Vec<Candidate>,
}

/// Chooses and leases the workers of one request.
pub(crate) struct Placer<'a> {
    pub pool: &'a Pool,
    pub request: &'a PlacementRequest,
    pub view: &'a SchedulerView,
    pub draw: Draw,
    pub limits: &'a LimitFlags,
    pub agent_trust: AgentTrust,
    pub now_ms: u64,
}

impl Placer<'_> {
    /// Chooses the workers and leases them. It runs under the queue's lock, and allocates nothing
    /// once `buffers` have grown to the size of the pool.
    ///
    /// # Errors
    /// All are full, none is ready, or the pool serves other models.
    pub(crate) fn lease(
        &self,
        released: &OnRelease,
        buffers: &mut CandidateBuffers,
    ) -> Result<Leased, PlacementError> {
        let serving = || self.pool.serving(self.request.model.as_deref());
        let count = serving().count();
        if count == 0 {
            return Err(match self.pool.compatible_sets.is_empty() {
                true => PlacementError::NotReady,
                false => PlacementError::UnknownModel,
            });
        }
        // During a rollout the pool has several sets of compatible workers. The sets of the best
        // health are tried, beginning at a random one.
        let rank = |compatible: &CompatibleSet| {
            if count > 1 { self.set_rank(compatible) } else { Some(0) }
        };
        let best = serving().filter_map(rank).min().ok_or(PlacementError::NotReady)?;
        let start = self.draw.turn as usize % count;
        let from_start = serving().skip(start).chain(serving().take(start));
        let mut result = PlacementError::NotReady;
        for compatible in from_start.filter(|compatible| rank(compatible) == Some(best)) {
            match self.lease_in(compatible, released, buffers) {
                Err(PlacementError::Full) => result = PlacementError::Full,
                Err(_) => {}
                leased => return leased,
            }
        }
        Err(result)
    }

    /// Makes a placement of the leases, without the queue's lock, and records what was sent.
    pub(crate) fn finish(&self, leased: Leased) -> Placement {
        match leased {
            Leased::Single(lease) => Placement::Single(lease),
            Leased::Pair { leases, refs, meet, chosen } => {
                let prefill = leases.prefill.worker();
                let prediction = Prediction::new(self.view, self.pool, &chosen, prefill);
                let rank = refs.prefill.rank.unwrap_or(0);
                let prompt = (self.request.weight, &self.request.blocks[..]);
                observe::sent(self.view, self.pool, &chosen, (prefill, rank), prompt);
                let explanation = ChoiceExplanation::new(&chosen, |id| {
                    &self.pool.members[CandidateRef::of_id(id).member].worker
                });
                Placement::Pair {
                    bootstrap: BootstrapAddress::new(meet.ip(), meet.port()),
                    ranks: self.ranks(refs),
                    explanation: explanation.map(Arc::new),
                    leases,
                    prediction,
                }
            }
        }
    }

    /// The rank of a set's best pair, or of its best single worker. `None` if none is ready.
    fn set_rank(&self, compatible: &CompatibleSet) -> Option<u8> {
        let best = |members| self.ready(members).map(|(_, member)| self.rank(member)).min();
        match self.pool.profile {
            Profile::Pd => Some(best(&compatible.prefill)?.max(best(&compatible.decode)?)),
            Profile::Single => best(&compatible.unified),
        }
    }

    fn lease_in(
        &self,
        compatible: &CompatibleSet,
        released: &OnRelease,
        buffers: &mut CandidateBuffers,
    ) -> Result<Leased, PlacementError> {
        match self.pool.profile {
            Profile::Pd => {
                let chosen = self.choose_pair(compatible, buffers)?;
                let refs = self.reconcile_ranks(chosen.pair.map(CandidateRef::of_id));
                let meet = self.pool.members[refs.prefill.member].bootstrap;
                let meet = meet.ok_or(PlacementError::NotReady)?;
                let work = chosen.work_bytes.map(|bytes| bytes as u64);
                let weight = self.request.weight;
                let prefill_weight =
                    Weight { prompt_bytes: work.unwrap_or(weight.prompt_bytes), ..weight };
                let prefill = self
                    .lease_one(refs.prefill, prefill_weight, released)
                    .ok_or(PlacementError::Full)?;
                match self.lease_one(refs.decode, weight, released) {
                    Some(decode) => {
                        Ok(Leased::Pair { leases: Pair { prefill, decode }, refs, meet, chosen })
                    }
                    // Decode filled up since it was examined. A lease that reports its end takes the
                    // queue's lock, which is held here: it is withdrawn without a report.
                    None => {
                        let worker = Arc::clone(prefill.worker());
                        prefill.cancel();
                        worker.lease_history.record(self.view.clock.now_ms(), worker.usage());
                        Err(PlacementError::Full)
                    }
                }
            }
            Profile::Single => {
                let all = &mut buffers.prefill;
                self.gather(
                    &compatible.unified,
                    self.order(compatible.unified.len(), self.draw, []),
                    all,
                )?;
                let chosen = self.view.policy.pick(all, self.draw).ok_or(PlacementError::Full)?;
                let lease =
                    self.lease_one(CandidateRef::of_id(chosen), self.request.weight, released);
                lease.map(Leased::Single).ok_or(PlacementError::Full)
            }
        }
    }

    /// Chooses the pair of a set of compatible workers.
    fn choose_pair(
        &self,
        compatible: &CompatibleSet,
        buffers: &mut CandidateBuffers,
    ) -> Result<Chosen, PlacementError> {
        let Weight { prompt_bytes, kv_tokens, .. } = self.request.weight;
        let prefix_match = self.view.prefixes().lookup(&self.request.blocks);
        let prefix_key = schedule::prefix_key(&self.request.blocks);
        let demand = schedule::Demand { prompt_bytes, kv_tokens, prefix_match, prefix_key };
        let is_possible = |cache| {
            compatible.holder(cache).is_some_and(|at| self.is_ready(compatible.prefill[at]))
        };
        let owner = demand.owner(compatible.caches.iter().map(|(cache, _)| *cache), is_possible);
        let first =
            demand.prefix_match.holders().chain(owner).filter_map(|cache| compatible.holder(cache));
        let CandidateBuffers { prefill, decode } = buffers;
        self.gather(
            &compatible.prefill,
            self.order(compatible.prefill.len(), self.draw, first),
            prefill,
        )?;
        let draw = self.draw.second();
        self.gather(&compatible.decode, self.order(compatible.decode.len(), draw, []), decode)?;
        let links = self.view.links();
        let input = ChoiceInput {
            demand,
            links: Some(&links),
            assumptions: &self.view.assumptions,
            objective: self.view.objective,
            now_ms: self.view.clock.now_ms(),
            ..ChoiceInput::of(prefill, decode, draw.second())
        };
        schedule::choose(self.view.policy, &input).ok_or(PlacementError::Full)
    }

    fn lease_one(
        &self,
        candidate: CandidateRef,
        weight: Weight,
        released: &OnRelease,
    ) -> Option<Lease> {
        let member = &self.pool.members[candidate.member];
        let worker = &member.worker;
        let released = Some(Arc::clone(released));
        let lease = worker.try_lease(weight, self.limits_of(member), released)?;
        worker.lease_history.record(self.view.clock.now_ms(), worker.usage());
        Some(lease.at_rank(candidate.rank))
    }

    fn steered(&self, CandidateRef { member, rank }: CandidateRef) -> Option<RankAssignment> {
        Some(RankAssignment { ranks: self.pool.members[member].ranks()?, rank: rank? })
    }

    /// The ranks that the request is assigned to.
    fn ranks(&self, refs: Pair<CandidateRef>) -> Pair<Option<RankAssignment>> {
        let mut ranks = refs.map(|candidate| self.steered(candidate));
        let by_field = |rank: &RankAssignment| rank.ranks.steering == Steering::Field;
        let decode = self.pool.members[refs.decode.member].engine_info.as_deref();
        if ranks.prefill.as_ref().is_some_and(by_field)
            && decode.is_some_and(|decode| !Ranks::decode_finds_named_prefill_rank(decode))
        {
            // Prefill chooses its rank, and decode looks it up.
            ranks.prefill = None;
        }
        ranks
    }

    /// If both engines derive their rank from the bootstrap room and no room leads to both chosen
    /// ranks, prefill takes the least busy of its ranks that shares a room with decode's rank:
    /// prefill has no capacity limit.
    fn reconcile_ranks(&self, refs: Pair<CandidateRef>) -> Pair<CandidateRef> {
        let Pair { prefill: Some(prefill), decode: Some(decode) } =
            refs.map(|candidate| self.steered(candidate))
        else {
            return refs;
        };
        let meets = |rank: &u32| prefill.ranks.meet(*rank, &decode.ranks, decode.rank);
        if meets(&prefill.rank) {
            return refs;
        }
        let worker = &self.pool.members[refs.prefill.member].worker;
        let rank = (0..prefill.ranks.count)
            .filter(meets)
            .min_by_key(|rank| worker.usage_of_rank(*rank).prompt_bytes);
        Pair { prefill: CandidateRef { rank, ..refs.prefill }, ..refs }
    }

    /// The order in which members are examined, and how many are enough. `first` are examined in
    /// any case. Round robin and groups need all members.
    fn order(&self, len: usize, draw: Draw, first: impl IntoIterator<Item = usize>) -> SampleOrder {
        let grouped = || self.pool.groups.iter().any(|group| *group != 0);
        if self.view.policy.samples() && !grouped() {
            SampleOrder::of(len, draw, first)
        } else {
            SampleOrder::all(len)
        }
    }

    /// Collects the members of the best available health into `all`, without those that are full.
    fn gather(
        &self,
        members: &[usize],
        order: SampleOrder,
        all: &mut Vec<Candidate>,
    ) -> Result<(), PlacementError> {
        let rates = self.view.rates(self.pool);
        let mut set = CandidateSet::new(all, order.sample_size());
        for id in order.map(|at| members[at]).filter(|&id| self.is_ready(id)) {
            let member = &self.pool.members[id];
            if set.accepts(self.rank(member)) {
                let (group, limits) = (self.pool.groups[id], self.limits_of(member));
                let whole = self.view.candidate(id, member, member.worker.usage(), &rates);
                let whole = Candidate { group, limits, ..whole };
                if self.admits(member, &whole) {
                    // Ghosts take no capacity: they are added after the worker was found to have some.
                    let ghosts = member.worker.ghosts.sum(self.now_ms);
                    let ghosts = ghosts.share(member.ranks().map_or(1, |ranks| ranks.count));
                    self.each_rank(id, &whole, |one| {
                        set.push(Candidate { usage: one.usage.plus(ghosts), ..one });
                    });
                }
            }
            if set.is_complete() {
                break;
            }
        }
        match (set.any_ready(), all.is_empty()) {
            (false, _) => Err(PlacementError::NotReady),
            (true, true) => Err(PlacementError::Full),
            (true, false) => Ok(()),
        }
    }

    /// Passes on the member as one candidate, or each of its ranks that has capacity.
    fn each_rank(&self, id: usize, whole: &Candidate, mut take: impl FnMut(Candidate)) {
        let member = &self.pool.members[id];
        let ranks = member.ranks();
        let count = ranks.map_or(1, |ranks| ranks.count);
        for rank in 0..count {
            let of_rank = CandidateRef { member: id, rank: ranks.map(|_| rank) };
            let one = of_rank.candidate(whole, &member.worker, count);
            if self.admits(member, &one) {
                take(one);
            }
        }
    }

    /// Whether the candidate has capacity for the request. At a decode worker the requests of other
    /// gateways count too. The other roles have only this gateway's own limit, which counts its own
    /// leases.
    fn admits(&self, member: &Member, candidate: &Candidate) -> bool {
        let weight = self.request.weight;
        match member.role {
            Role::Decode => candidate.admits(weight, self.agent_trust),
            Role::Prefill | Role::Unified => candidate.limits.admit(candidate.usage, weight),
        }
    }

    fn ready<'s>(&'s self, members: &'s [usize]) -> impl Iterator<Item = (usize, &'s Member)> {
        let ready = members.iter().filter(|&&id| self.is_ready(id));
        ready.map(|&id| (id, &self.pool.members[id]))
    }

    fn is_ready(&self, id: usize) -> bool {
        let member = &self.pool.members[id];
        let only = self.request.only.as_ref();
        let is_allowed = only.is_none_or(|only| Arc::ptr_eq(only, &member.worker));
        member.is_eligible() && is_allowed
    }

    /// The member's health as a rank: the lowest is the best.
    fn rank(&self, member: &Member) -> u8 {
        let avoided =
            || self.request.avoid.iter().any(|worker| Arc::ptr_eq(worker, &member.worker));
        let health = &member.worker.health;
        let is_left_alone = || avoided() || health.refused_recently(self.now_ms);
        match health.verdict() {
            Verdict::Up if !is_left_alone() => 0,
            Verdict::Up => 1,
            // One request tries it: leases are taken under one lock, so no second sees it idle.
            Verdict::HalfOpen if !is_left_alone() && member.worker.usage().requests == 0 => 0,
            Verdict::Unknown => 2,
            Verdict::HalfOpen | Verdict::Failing => 3,
            Verdict::Down => 4,
        }
    }

    /// The member's capacity. What a decode engine reports now counts more than what it reported
    /// when it started.
    fn limits_of(&self, member: &Member) -> WorkerLimits {
        let default = u64::from(self.limits.max_requests_per_worker);
        let engine = &member.worker.engine;
        let info = member.engine_info.as_deref();
        let at_start = || info.and_then(|info| info.max_running_requests).map(u64::from);
        match member.role {
            Role::Decode => WorkerLimits {
                requests: engine.max_requests().or_else(at_start).unwrap_or(default),
                kv_tokens: engine
                    .max_tokens()
                    .or_else(|| info.and_then(kv_tokens_of_all_ranks))
                    .unwrap_or(u64::MAX),
            },
            Role::Prefill | Role::Unified => {
                WorkerLimits { requests: default, kv_tokens: u64::MAX }
            }
        }
    }
}

/// A member of the pool and, if its engine can be steered, one of its ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CandidateRef {
    member: usize,
    rank: Option<u32>,
}

impl CandidateRef {
    /// Both in one number: the id of a candidate.
    fn id(self) -> usize {
        self.member * (MAX_RANKS as usize + 1) + self.rank.map_or(0, |rank| rank as usize + 1)
    }

    fn of_id(id: usize) -> CandidateRef {
        let stride = MAX_RANKS as usize + 1;
        let rank = (id % stride).checked_sub(1).map(|rank| rank as u32);
        CandidateRef { member: id / stride, rank }
    }

    /// One of `count` candidates of a member, derived from the `whole` member. The requests of other
    /// gateways are split as the engine reported, or evenly if it did not.
    fn candidate(self, whole: &Candidate, worker: &Worker, count: u32) -> Candidate {
        let whole = Candidate { id: self.id(), ..*whole };
        let Some(rank) = self.rank else { return whole };
        // The report of a rank is as old as that of the whole engine: if the latter is stale, the
        // former is too.
        let of_rank = whole.reported.and_then(|_| worker.engine.rank(rank));
        let share = of_rank.map_or(1.0 / count as f32, |of_rank| of_rank.others_share);
        let load = whole.load.map(|load| Load {
            others_requests: load.others_requests * share,
            others_waiting_bytes: load.others_waiting_bytes * share,
            ..load
        });
        let each = u64::from(count);
        let evenly = |all: PolledLoad| PolledLoad {
            requests: all.requests / each,
            tokens: all.tokens / each,
            others_requests: all.others_requests / each,
            others_tokens: all.others_tokens / each,
        };
        let reported =
            whole.reported.map(|all| of_rank.map_or_else(|| evenly(all), |one| one.reported));
        let (usage, limits) = (worker.usage_of_rank(rank), limits_of_rank(whole.limits, count));
        // The prefill queue is the worker's, not the rank's.
        Candidate { rank, usage, limits, load, reported, queue_head: QueueHead::default(), ..whole }
    }
}

/// An engine reports the requests of all ranks together, and the KV tokens of one.
fn kv_tokens_of_all_ranks(info: &EngineInfo) -> Option<u64> {
    let ranks = u64::from(info.dp_size.unwrap_or(1).max(1));
    Some(info.max_total_num_tokens?.saturating_mul(ranks))
}

fn limits_of_rank(limits: WorkerLimits, count: u32) -> WorkerLimits {
    let each = |all: u64| if all == u64::MAX { all } else { all.div_ceil(u64::from(count)) };
    WorkerLimits { requests: each(limits.requests), kv_tokens: each(limits.kv_tokens) }
}
