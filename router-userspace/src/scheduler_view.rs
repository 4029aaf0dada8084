//! [`SchedulerView`]: what a choice sees of workers beyond their leases: kernel loads, learned rates, links.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use router_core::fleet::{
    EngineRates, LinkTable, Load, MAX_RANKS, Member, Pool, RateEstimators, ReportedLoad, Role,
    Usage, Worker, cache_of,
};
use router_core::schedule::{
    AgentTrust, Assumptions, Candidate, Chosen, Estimate, Objective, Policy, step_us_of_idle,
};

use router_core::schedule::{BlockHasher, IndexCapacity, PrefixIndex};
use router_core::sglang::Request;

use crate::clock::Clock;

/// Pairs of workers of which something is remembered.
const PAIRS: usize = 8192;
/// Blocks of prompts that are remembered, in 6 MiB; and what one engine's cache is thought to hold:
/// about a million tokens.
const PREFIXES: IndexCapacity =
    IndexCapacity { blocks: 1 << 17, caches: 4096, cache_bytes: 4 << 20 };
/// Bytes of a prompt that make a token, where only tokens are told.
const BYTES_PER_TOKEN: f32 = 4.0;

/// What is known of the fleet for choosing; shared by admission and the listeners to agents.
#[derive(Clone, Debug)]
pub(crate) struct SchedulerView {
    pub(crate) policy: Policy,
    pub(crate) clock: Clock,
    pub(crate) aim: Objective,
    pub(crate) assumptions: Assumptions,
    /// Engines are asked so often.
    pub(crate) poll_ms: u64,
    links: Arc<Mutex<LinkTable>>,
    prefixes: Arc<Mutex<PrefixIndex>>,
}

impl SchedulerView {
    pub(crate) fn new(
        policy: Policy,
        clock: Clock,
        engine_interval: std::time::Duration,
    ) -> SchedulerView {
        let interval_ms = u64::try_from(engine_interval.as_millis()).unwrap_or(u64::MAX);
        SchedulerView {
            policy,
            clock,
            aim: Objective::default(),
            assumptions: Assumptions::USUAL,
            poll_ms: interval_ms,
            links: Arc::new(Mutex::new(LinkTable::new(PAIRS))),
            prefixes: Arc::new(Mutex::new(PrefixIndex::new(PREFIXES))),
        }
    }

    /// The same, for other ends.
    pub(crate) fn aiming_at(self, aim: Objective) -> SchedulerView {
        SchedulerView { aim, ..self }
    }

    /// The facts about pairs. Held for one choice or one frame's changes.
    pub(crate) fn links(&self) -> MutexGuard<'_, LinkTable> {
        self.links.lock()
    }

    /// Who was sent which prompts. Held for one look or one note.
    pub(crate) fn prefixes(&self) -> MutexGuard<'_, PrefixIndex> {
        self.prefixes.lock()
    }

    /// The caches of a worker, of whatever rank, are empty: its engine began anew.
    pub(crate) fn forget_prefixes(&self, worker: &Worker) {
        let mut prefixes = self.prefixes();
        (0..MAX_RANKS).for_each(|rank| prefixes.forget(cache_of(worker.identity, rank)));
    }

    /// The blocks of a request's prompt, for a policy that asks who has them. Models share none.
    pub(crate) fn blocks(&self, request: &Request) -> Vec<u64> {
        let mut blocks = Vec::new();
        if self.policy == Policy::Predicted {
            let mut seed = DefaultHasher::new();
            request.model().hash(&mut seed);
            let mut hasher = BlockHasher::new(seed.finish());
            request.prompt_text().for_each(|piece| hasher.write(piece, &mut blocks));
        }
        blocks
    }

    /// What is believed of a pool's engines together.
    pub(crate) fn rates(&self, pool: &Pool) -> EngineRates {
        pool.rate_estimators.rates(&self.assumptions.rates, self.clock.now_ms())
    }

    /// A member as the scheduler and admission look at it. `pool` is what is believed of its pool.
    pub(crate) fn candidate(
        &self,
        id: usize,
        member: &Member,
        usage: Usage,
        pool: &EngineRates,
    ) -> Candidate {
        let worker = &member.worker;
        let alone = Candidate { id, usage, worker: worker.identity, ..Candidate::default() };
        if self.policy != Policy::Predicted && member.role != Role::Decode {
            // They go by leases alone, and so does admission where no engine tells a limit.
            return alone;
        }
        let now_us = self.clock.now_us();
        let now_ms = now_us / 1000;
        let reported = worker.engine.recent(now_ms, self.poll_ms.saturating_mul(AgentTrust::POLLS));
        let measured = worker.load.get(now_us);
        Candidate {
            rates: worker.rate_estimators.rates(pool, now_ms),
            queue_head: worker.prefill_queue().head(now_ms),
            load: measured.or_else(|| reported.map(told)),
            reported,
            measured: measured.is_some(),
            ..alone
        }
    }

    /// What is to be learned of a choice once its prefill has answered.
    pub(crate) fn forecast(
        &self,
        pool: &Pool,
        chosen: &Chosen,
        prefill: &Arc<Worker>,
    ) -> Option<Forecast> {
        let Estimate { wait_ms, admission_ms, prefill_ms, transfer_ms, work_bytes, .. } =
            chosen.estimate?;
        let now_ms = self.clock.now_ms();
        let rates = prefill.rate_estimators.rates(&self.rates(pool), now_ms);
        Some(Forecast {
            pool: Arc::clone(&pool.rate_estimators),
            clock: self.clock,
            sent_ms: now_ms,
            ahead_bytes: (wait_ms + prefill_ms) * 1000.0 / rates.prefill_us_per_byte.max(1e-6),
            ahead_ms: wait_ms + prefill_ms,
            transfer_ms,
            roomless: admission_ms > 0.0,
            _in_line: Arc::new(InLine::join(prefill, work_bytes, self.clock)),
        })
    }

    /// A stream of `tokens` ended that came `itl_ms` apart. An agent tells of steps itself.
    pub(crate) fn answered(
        &self,
        pool: &RateEstimators,
        worker: &Worker,
        tokens: f32,
        itl_ms: f32,
    ) {
        let now_us = self.clock.now_us();
        let now_ms = now_us / 1000;
        pool.on_response(tokens, now_ms);
        let agent = worker.load.get(now_us).is_some_and(|load| !load.is_stale());
        if !agent && itl_ms > 0.0 {
            let batch = worker.usage().kv_tokens as f32;
            let step_us = step_us_of_idle(itl_ms * 1000.0, batch, &self.assumptions);
            pool.on_pool_decode_step(step_us, now_ms);
            worker.rate_estimators.on_decode_step(step_us, now_ms);
        }
    }
}

/// What the engine itself told, where no agent ever spoke of it: counts alone, and as old as the
/// last poll.
fn told(told: ReportedLoad) -> Load {
    let share = told.others_requests as f32 / told.requests.max(1) as f32;
    Load {
        others_requests: told.others_requests as f32,
        others_waiting_bytes: told.others_tokens as f32 * BYTES_PER_TOKEN * share,
        ..Load::default()
    }
}

/// What was predicted of a prefill: what really happens is evidence.
#[derive(Clone, Debug)]
pub(crate) struct Forecast {
    pool: Arc<RateEstimators>,
    clock: Clock,
    sent_ms: u64,
    /// The work of the prompt and of those before it, in bytes, and how long that was to take.
    ahead_bytes: f32,
    ahead_ms: f32,
    transfer_ms: f32,
    /// It was known to wait for room at decode: that is no evidence of prefill.
    roomless: bool,
    _in_line: Arc<InLine>,
}

/// A prompt's place in the line of its prefill, until it is computed or given up.
#[derive(Debug)]
struct InLine {
    worker: Arc<Worker>,
    ticket: u64,
    clock: Clock,
}

impl InLine {
    fn join(worker: &Arc<Worker>, work_bytes: f32, clock: Clock) -> InLine {
        let ticket = worker.prefill_queue().push(work_bytes, clock.now_ms());
        InLine { worker: Arc::clone(worker), ticket, clock }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.worker.prefill_queue().remove(self.ticket, self.clock.now_ms());
    }
}

impl Forecast {
    /// The prefill has answered now.
    pub(crate) fn came(&self, prefill: &Worker) {
        if self.roomless {
            return;
        }
        let now_ms = self.clock.now_ms();
        let took_ms = now_ms.saturating_sub(self.sent_ms) as f32;
        let work_ms = (took_ms - self.transfer_ms).max(took_ms / 5.0);
        for experience in [&*self.pool, &prefill.rate_estimators] {
            experience.on_prefill(self.ahead_bytes, work_ms, self.ahead_ms, now_ms);
        }
    }
}

/// Who answered a stream, for what is learned when it ends.
#[derive(Clone, Debug)]
pub(crate) struct Lesson {
    pub(crate) view: SchedulerView,
    pub(crate) pool: Arc<RateEstimators>,
    pub(crate) worker: Arc<Worker>,
}

impl Lesson {
    pub(crate) fn answered(&self, tokens: u64, itl: std::time::Duration) {
        let itl_ms = itl.as_secs_f32() * 1000.0;
        self.view.answered(&self.pool, &self.worker, tokens as f32, itl_ms);
    }
}
