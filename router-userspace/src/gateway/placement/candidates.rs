//! Who of a set is looked at for a request: ready, as healthy as any, with room.

use std::sync::Arc;

use router_core::fleet::{
    EngineInfo, Load, MAX_RANKS, Member, Phase, QueueHead, ReportedLoad, Role, Verdict, Worker,
    WorkerLimits,
};
use router_core::schedule::{Candidate, CandidateSet, Draw, Policy, SampleOrder};

use super::placer::{NoSeat, Seating};

impl Seating<'_> {
    /// In which order members are looked at, and how many are enough. `first` are looked at in any
    /// case. Turns and groups go by all.
    pub(super) fn order(
        &self,
        len: usize,
        draw: Draw,
        first: impl IntoIterator<Item = usize>,
    ) -> SampleOrder {
        let grouped = || self.pool.groups.iter().any(|group| *group != 0);
        if self.view.policy == Policy::Predicted && !grouped() {
            SampleOrder::of(len, draw, first)
        } else {
            SampleOrder::all(len)
        }
    }

    /// Those of the best health that is to be had, less those that are full. Health may be a
    /// last resort; capacity never is.
    pub(super) fn gather(
        &self,
        seats: &[usize],
        order: SampleOrder,
        all: &mut Vec<Candidate>,
    ) -> Result<(), NoSeat> {
        let rates = self.view.rates(self.pool);
        let mut set = CandidateSet::new(all, order.sample_size());
        for id in order.map(|at| seats[at]).filter(|&id| self.is_ready(id)) {
            let member = &self.pool.members[id];
            if set.accepts(self.rank(member)) {
                let (group, limits) = (self.pool.groups[id], self.limits_of(member));
                let whole = self.view.candidate(id, member, member.worker.usage(), &rates);
                let whole = Candidate { group, limits, ..whole };
                if self.admits(member, &whole) {
                    self.each_rank(id, &whole, |one| set.push(one));
                }
            }
            if set.is_complete() {
                break;
            }
        }
        match (set.any_ready(), all.is_empty()) {
            (false, _) => Err(NoSeat::Nobody),
            (true, true) => Err(NoSeat::Full),
            (true, false) => Ok(()),
        }
    }

    /// The member as one candidate, or each of its ranks that has room.
    fn each_rank(&self, id: usize, whole: &Candidate, mut take: impl FnMut(Candidate)) {
        let member = &self.pool.members[id];
        let ranks = member.ranks();
        let count = ranks.map_or(1, |ranks| ranks.count);
        for rank in 0..count {
            let place = Place { member: id, rank: ranks.map(|_| rank) };
            let one = place.candidate(whole, &member.worker, count);
            if self.admits(member, &one) {
                take(one);
            }
        }
    }

    /// What others have at a decode takes its engine's room. Of the other roles no limit but the
    /// gateway's own is known, which is for its own leases.
    fn admits(&self, member: &Member, candidate: &Candidate) -> bool {
        match member.role {
            Role::Decode => candidate.admits(self.ask.weight, self.patience),
            Role::Prefill | Role::Unified => {
                candidate.limits.admit(candidate.usage, self.ask.weight)
            }
        }
    }

    pub(super) fn ready<'s>(
        &'s self,
        seats: &'s [usize],
    ) -> impl Iterator<Item = (usize, &'s Member)> {
        let ready = seats.iter().filter(|&&id| self.is_ready(id));
        ready.map(|&id| (id, &self.pool.members[id]))
    }

    pub(super) fn is_ready(&self, id: usize) -> bool {
        let member = &self.pool.members[id];
        let meets = member.role != Role::Prefill || member.bootstrap.is_some();
        member.phase == Phase::Ready && meets && self.may_be(&member.worker)
    }

    fn may_be(&self, worker: &Arc<Worker>) -> bool {
        self.ask.only.as_ref().is_none_or(|only| Arc::ptr_eq(only, worker))
    }

    pub(super) fn rank(&self, member: &Member) -> u8 {
        let avoided = || self.ask.avoid.iter().any(|worker| Arc::ptr_eq(worker, &member.worker));
        match member.worker.health.verdict() {
            Verdict::Up if !avoided() => 0,
            Verdict::Up => 1,
            Verdict::Unknown => 2,
            Verdict::Failing => 3,
            Verdict::Down => 4,
        }
    }

    pub(super) fn limits_of(&self, member: &Member) -> WorkerLimits {
        let usual = u64::from(self.limits.max_requests_per_worker);
        let facts = member.engine_info.as_deref();
        match member.role {
            Role::Decode => WorkerLimits {
                // What it tells now counts more than what it told at its start.
                requests: member
                    .worker
                    .engine
                    .max_requests()
                    .or(facts.and_then(|f| f.max_running_requests).map(u64::from))
                    .unwrap_or(usual),
                kv_tokens: member
                    .worker
                    .engine
                    .max_tokens()
                    .or(facts.and_then(kv_tokens_of_all_ranks))
                    .unwrap_or(u64::MAX),
            },
            Role::Prefill | Role::Unified => WorkerLimits { requests: usual, kv_tokens: u64::MAX },
        }
    }
}

/// A member and, where it can be steered to, one of its ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(super) member: usize,
    pub(super) rank: Option<u32>,
}

impl Place {
    /// Both in one number, as a candidate's name.
    fn id(self) -> usize {
        self.member * (MAX_RANKS as usize + 1) + self.rank.map_or(0, |rank| rank as usize + 1)
    }

    pub(super) fn of_id(id: usize) -> Place {
        let stride = MAX_RANKS as usize + 1;
        let rank = (id % stride).checked_sub(1).map(|rank| rank as u32);
        Place { member: id / stride, rank }
    }

    /// One of `count` candidates of a member, made of what is known of the `whole`. What others
    /// have there is thought to be spread as the engine told, else evenly.
    fn candidate(self, whole: &Candidate, worker: &Worker, count: u32) -> Candidate {
        let whole = Candidate { id: self.id(), ..*whole };
        let Some(rank) = self.rank else { return whole };
        // As old as what is known of the whole: where that is too old, there is none.
        let told = whole.reported.and_then(|_| worker.engine.rank(rank));
        let share = told.map_or(1.0 / count as f32, |told| told.others_share);
        let load = whole.load.map(|load| Load {
            others_requests: load.others_requests * share,
            others_waiting_bytes: load.others_waiting_bytes * share,
            ..load
        });
        let each = u64::from(count);
        let evenly = |all: ReportedLoad| ReportedLoad {
            requests: all.requests / each,
            tokens: all.tokens / each,
            others_requests: all.others_requests / each,
            others_tokens: all.others_tokens / each,
        };
        let reported =
            whole.reported.map(|all| told.map_or_else(|| evenly(all), |told| told.reported));
        let (usage, limits) = (worker.usage_of_rank(rank), limits_of_rank(whole.limits, count));
        // The line is the worker's, not the rank's.
        Candidate { rank, usage, limits, load, reported, queue_head: QueueHead::default(), ..whole }
    }
}

/// Engines tell the requests of all ranks together, and the KV tokens of one.
fn kv_tokens_of_all_ranks(facts: &EngineInfo) -> Option<u64> {
    let ranks = u64::from(facts.dp_size.unwrap_or(1).max(1));
    Some(facts.max_total_num_tokens?.saturating_mul(ranks))
}

fn limits_of_rank(limits: WorkerLimits, count: u32) -> WorkerLimits {
    let each = |all: u64| if all == u64::MAX { all } else { all.div_ceil(u64::from(count)) };
    WorkerLimits { requests: each(limits.requests), kv_tokens: each(limits.kv_tokens) }
}
