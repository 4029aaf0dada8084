//! [`SchedulerView`]: what a choice sees of workers beyond their leases: measured load, learned
//! rates, links between pairs, cached prefixes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use router_core::fleet::{
    EngineRates, LinkTable, Load, MAX_RANKS, Member, PolledLoad, Pool, Role, Usage, Worker,
    cache_of,
};
use router_core::schedule::{
    AgentTrust, Assumptions, BlockHasher, Candidate, IndexCapacity, Objective, Policy, PrefixIndex,
};
use router_core::sglang::Request;

use crate::clock::MonotonicClock;

/// Maximum number of pairs of workers whose links are kept.
const MAX_PAIRS: usize = 8192;
/// Maximum number of prompt blocks in the index, which take 6 MiB, and the assumed size of one
/// engine's cache: about a million tokens.
const PREFIXES: IndexCapacity =
    IndexCapacity { blocks: 1 << 17, caches: 4096, cache_bytes: 4 << 20 };
/// Bytes of a prompt per token, for engines that report tokens only.
const BYTES_PER_TOKEN: f32 = 4.0;

/// The state that choices read. Requests, probes and load frames update it.
#[derive(Clone, Debug)]
pub(crate) struct SchedulerView {
    pub(crate) policy: Policy,
    pub(crate) clock: MonotonicClock,
    pub(crate) objective: Objective,
    pub(crate) assumptions: Assumptions,
    /// Interval at which engines are polled for their load.
    pub(crate) poll_ms: u64,
    links: Arc<Mutex<LinkTable>>,
    prefixes: Arc<Mutex<PrefixIndex>>,
}

impl SchedulerView {
    pub(crate) fn new(
        policy: Policy,
        clock: MonotonicClock,
        poll_interval: Duration,
    ) -> SchedulerView {
        let poll_ms = u64::try_from(poll_interval.as_millis()).unwrap_or(u64::MAX);
        SchedulerView {
            policy,
            clock,
            objective: Objective::default(),
            assumptions: Assumptions::USUAL,
            poll_ms,
            links: Arc::new(Mutex::new(LinkTable::new(MAX_PAIRS))),
            prefixes: Arc::new(Mutex::new(PrefixIndex::new(PREFIXES))),
        }
    }

    /// Returns the view with the given service-level objective.
    pub(crate) fn with_objective(self, objective: Objective) -> SchedulerView {
        SchedulerView { objective, ..self }
    }

    /// The links between pairs. Locked for one choice, or for the changes of one frame.
    pub(crate) fn links(&self) -> MutexGuard<'_, LinkTable> {
        self.links.lock()
    }

    /// Which prefill ranks have which prompt blocks in their caches. Locked for one lookup or one
    /// update.
    pub(crate) fn prefixes(&self) -> MutexGuard<'_, PrefixIndex> {
        self.prefixes.lock()
    }

    /// Forgets what the caches of all ranks of a worker hold: its engine has restarted.
    pub(crate) fn forget_prefixes(&self, worker: &Worker) {
        let mut prefixes = self.prefixes();
        (0..MAX_RANKS).for_each(|rank| prefixes.forget(cache_of(worker.identity, rank)));
    }

    /// The hashes of the blocks of a request's prompt; empty if the policy does not use prefixes.
    /// Models share no blocks.
    pub(crate) fn blocks(&self, request: &Request) -> Vec<u64> {
        let mut blocks = Vec::new();
        if self.policy.uses_prefixes() {
            let mut seed = DefaultHasher::new();
            request.model().hash(&mut seed);
            let mut hasher = BlockHasher::new(seed.finish());
            request.prompt_text().for_each(|piece| hasher.write(piece, &mut blocks));
        }
        blocks
    }

    /// The estimated rates of a pool's engines together.
    pub(crate) fn rates(&self, pool: &Pool) -> EngineRates {
        pool.rate_estimators.rates(&self.assumptions.rates, self.clock.now_ms())
    }

    /// A member as a candidate of a choice. `pool` are the estimated rates of its pool.
    pub(crate) fn candidate(
        &self,
        id: usize,
        member: &Member,
        usage: Usage,
        pool: &EngineRates,
    ) -> Candidate {
        let worker = &member.worker;
        let alone = Candidate { id, usage, worker: worker.identity, ..Candidate::default() };
        if !self.policy.uses_loads() && member.role != Role::Decode {
            // These policies use leases only, and so does admission for these roles.
            return alone;
        }
        let now_us = self.clock.now_us();
        let now_ms = now_us / 1000;
        let reported = worker.engine.recent(now_ms, self.poll_ms.saturating_mul(AgentTrust::POLLS));
        let measured = worker.load.get(now_us);
        Candidate {
            rates: worker.rate_estimators.rates(pool, now_ms),
            queue_head: worker.prefill_queue().head(now_ms),
            load: measured.or_else(|| reported.map(load_of)),
            reported,
            measured: measured.is_some(),
            ..alone
        }
    }
}

/// The load as the engine reported it, for workers without an agent. It has counts only, and is as
/// old as the last poll.
fn load_of(report: PolledLoad) -> Load {
    let share = report.others_requests as f32 / report.requests.max(1) as f32;
    Load {
        others_requests: report.others_requests as f32,
        others_waiting_bytes: report.others_tokens as f32 * BYTES_PER_TOKEN * share,
        ..Load::default()
    }
}
