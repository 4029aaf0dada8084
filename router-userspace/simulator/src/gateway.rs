//! [`Gateway`]: one modelled gateway: the schedule room, and only what a gateway can see.
//!
//! It knows bytes, not tokens; its own leases at once, and everything else as old as it comes.
//! What it assumes of engines is wrong by a factor of two in each number.

use std::collections::VecDeque;

use crate::chance::Chance;
use crate::contender::{Contender, Way};
use crate::engine::Engine;
use crate::history::History;
use crate::view::{View, Views};
use router_core::fleet::{
    EngineRates, Link, LinkPrior, LinkTable, Load, PrefillQueue, RateEstimators, ReportedLoad,
    Usage, WorkerLimits,
};
use router_core::pair::Pair;
use router_core::schedule::{
    AgentTrust, Assumptions, Candidate, CandidateSet, ChoiceInput, Demand, Draw, IndexCapacity,
    Objective, Policy, PrefixIndex, SampleOrder, choose, prefix_key, step_us_of_idle,
};

/// Bytes of a token on average: what the model uses to make prompts of a trace's tokens.
pub(crate) const BYTES_PER_TOKEN: f64 = 4.2;

/// Room that admission keeps for an answer of unknown length.
const OUTPUT_TOKENS: u64 = 512;
/// A gateway polls its engines so often, whatever its policy, unless the policy says otherwise.
const POLL_MS: u32 = 1000;

/// What a gateway remembers of a request that it sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) pair: Pair<usize>,
    prefill: Usage,
    decode: Usage,
    bytes: u64,
    at_ms: f64,
    /// Work before it and its own, as it was believed; what happened to both is evidence.
    ahead_bytes: f32,
    ahead_ms: f32,
    transfer_ms: f32,
    /// It was known that decode had no room for it yet.
    roomless: bool,
    ticket: u64,
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// No decode has room by the gateway's own leases: it waits in the gateway.
    Full,
    /// Nobody is left.
    Nobody,
}

/// A request as a gateway sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompt<'a> {
    pub(crate) bytes: u64,
    pub(crate) blocks: &'a [u64],
    pub(crate) waited_ms: f64,
}

/// What all looks at candidates of one request have in common.
struct Look<'a> {
    pool: EngineRates,
    views: &'a Views,
    now: f64,
    weight: Usage,
    patience: AgentTrust,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    way: Way,
    prefills: usize,
    chance: Chance,
    turn: u64,
    usage: Vec<Usage>,
    /// What it had on each worker, and the bytes of the whole prompts, for frames of then.
    past: Vec<History<(Usage, u64)>>,
    prompts: Vec<u64>,
    queues: Vec<PrefillQueue>,
    limits: WorkerLimits,
    /// Requests that wait for room, in order.
    pub(crate) waiting: VecDeque<usize>,
    dead: Vec<bool>,
    pool: RateEstimators,
    workers: Vec<RateEstimators>,
    assumptions: Assumptions,
    index: PrefixIndex,
    links: LinkTable,
    /// When its poll of each interval falls.
    phase: f64,
}

impl Gateway {
    pub(crate) fn new(
        contender: Contender,
        engine: &Engine,
        (prefills, decodes): (usize, usize),
        seed: u64,
        number: u64,
    ) -> Gateway {
        let mut chance = Chance::new(seed, 100 + number);
        // All gateways of a seed are configured alike, and wrong.
        let mut wrong = Chance::new(seed, 3);
        let assumptions = assumptions(engine, &mut wrong);
        let cache = f64::from(engine.prefix_cache_tokens) * BYTES_PER_TOKEN * wrong.twofold();
        let remembers = contender.way.policy() == router_core::schedule::Policy::CacheAware;
        let capacity = IndexCapacity {
            blocks: 1 << 17,
            caches: prefills,
            // sglang-router's tree does not age; this index models the engine's cache.
            cache_bytes: if remembers { u64::MAX } else { cache as u64 },
        };
        let workers = prefills + decodes;
        Gateway {
            way: contender.way,
            prefills,
            phase: chance.unit(),
            chance,
            turn: number,
            usage: vec![Usage::default(); workers],
            prompts: vec![0; workers],
            queues: vec![PrefillQueue::default(); workers],
            // As engines tell them when asked.
            limits: WorkerLimits {
                requests: engine.max_running as u64,
                kv_tokens: engine.kv_tokens,
            },
            waiting: VecDeque::new(),
            past: (0..workers).map(|_| History::default()).collect(),
            dead: vec![false; workers],
            pool: RateEstimators::of_pool(),
            workers: (0..workers).map(|_| RateEstimators::default()).collect(),
            assumptions,
            index: PrefixIndex::new(capacity),
            links: LinkTable::new(1024),
        }
    }

    /// Chooses a pair and counts the request on it.
    pub(crate) fn send(
        &mut self,
        prompt: Prompt<'_>,
        views: &Views,
        now: f64,
    ) -> Result<Sent, Unsent> {
        let now_ms = now as u64;
        let pool = self.pool.rates(&self.assumptions.rates, now_ms);
        if self.way == Way::Agents {
            self.watch_steps(&pool, views, now);
        }
        let (prefills, decodes) = self.dead.split_at(self.prefills);
        if [prefills, decodes].iter().any(|leg| leg.iter().all(|dead| *dead)) {
            return Err(Unsent::Nobody);
        }
        let kv_tokens = prompt.bytes / 4 + OUTPUT_TOKENS;
        let draw = Draw { chance: self.chance.next(), turn: self.turn };
        self.turn += 1;
        let demand = Demand {
            prompt_bytes: prompt.bytes,
            kv_tokens,
            prefix_match: self.index.lookup(prompt.blocks),
            prefix_key: prefix_key(prompt.blocks),
        };
        let weight = Usage { requests: 1, kv_tokens, ..Usage::default() };
        let patience = AgentTrust::after(prompt.waited_ms as u64, u64::from(self.poll_ms()));
        let look = Look { pool, views, now, weight, patience };
        let Pair { prefill, decode } = self.candidates(&demand, draw, &look);
        let input = ChoiceInput {
            demand,
            candidates: Pair { prefill: &prefill, decode: &decode },
            links: (self.way == Way::Agents).then_some(&self.links),
            assumptions: &self.assumptions,
            objective: Objective::default(),
            now_ms,
            draw,
        };
        let chosen = choose(self.way.policy(), &input).ok_or(Unsent::Full)?;
        let estimate = chosen.estimate.unwrap_or_default();
        let work_bytes = chosen.estimate.map_or(prompt.bytes as f32, |told| told.work_bytes);
        let backlog_ms = estimate.wait_ms + estimate.prefill_ms;
        let rates = self.workers[chosen.pair.prefill].rates(&pool, now_ms);
        let sent = Sent {
            pair: chosen.pair,
            prefill: Usage { requests: 1, prompt_bytes: work_bytes as u64, ..Usage::default() },
            decode: Usage { requests: 1, kv_tokens, ..Usage::default() },
            bytes: prompt.bytes,
            at_ms: now,
            ahead_bytes: backlog_ms * 1000.0 / rates.prefill_us_per_byte,
            ahead_ms: backlog_ms,
            transfer_ms: estimate.transfer_ms,
            roomless: estimate.admission_ms > 0.0,
            ticket: self.queues[chosen.pair.prefill].push(work_bytes, now_ms),
        };
        self.count(sent.pair.prefill, sent.prefill, sent.bytes, now);
        self.count(sent.pair.decode, sent.decode, sent.bytes, now);
        self.index.insert(identity(sent.pair.prefill), prompt.blocks);
        self.pool.on_request(kv_tokens as f32, prompt.bytes as f32, work_bytes, now_ms);
        Ok(sent)
    }

    /// Prefill answered: prompt computed, KV cache sent.
    pub(crate) fn prefilled(&mut self, sent: &Sent, now: f64) {
        self.leave(sent, now);
        if sent.roomless {
            return;
        }
        let took_ms = (now - sent.at_ms) as f32;
        let work_ms = (took_ms - sent.transfer_ms).max(took_ms / 5.0);
        for experience in [&self.pool, &self.workers[sent.pair.prefill]] {
            experience.on_prefill(sent.ahead_bytes, work_ms, sent.ahead_ms, now as u64);
        }
    }

    /// The answer ended, after as many events as it had tokens.
    pub(crate) fn answered(&mut self, sent: &Sent, tokens: u32, itl_ms: f64, now: f64) {
        let batch = self.usage[sent.pair.decode].kv_tokens as f32;
        self.uncount(sent.pair.decode, sent.decode, sent.bytes, now);
        self.pool.on_response(tokens as f32, now as u64);
        if self.way != Way::Agents && itl_ms > 0.0 {
            let step_us = step_us_of_idle(itl_ms as f32 * 1000.0, batch, &self.assumptions);
            self.pool.on_pool_decode_step(step_us, now as u64);
            self.workers[sent.pair.decode].on_decode_step(step_us, now as u64);
        }
    }

    /// The request failed; `prefilled` says whether its prefill had answered.
    pub(crate) fn failed(&mut self, sent: &Sent, prefilled: bool, now: f64) {
        if !prefilled {
            self.leave(sent, now);
        }
        self.uncount(sent.pair.decode, sent.decode, sent.bytes, now);
    }

    /// Nobody sends to a worker that cannot be reached.
    pub(crate) fn lost(&mut self, worker: usize) {
        self.dead[worker] = true;
    }

    /// An agent measured a transfer.
    pub(crate) fn heard(&mut self, pair: Pair<usize>, prompt: f32, bytes: f32, ms: f32, now: f64) {
        let (prefill, decode) = (identity(pair.prefill), identity(pair.decode));
        self.links.on_transfer(prefill, decode, bytes, ms, now as u64);
        self.pool.on_kv_transfer(prompt, bytes, now as u64);
    }

    fn leave(&mut self, sent: &Sent, now: f64) {
        self.uncount(sent.pair.prefill, sent.prefill, sent.bytes, now);
        self.queues[sent.pair.prefill].remove(sent.ticket, now as u64);
    }

    fn count(&mut self, worker: usize, weight: Usage, bytes: u64, now: f64) {
        let usage = &mut self.usage[worker];
        usage.requests += weight.requests;
        usage.prompt_bytes += weight.prompt_bytes;
        usage.kv_tokens += weight.kv_tokens;
        self.prompts[worker] += bytes;
        self.past[worker].set(now, (*usage, self.prompts[worker]));
    }

    fn uncount(&mut self, worker: usize, weight: Usage, bytes: u64, now: f64) {
        let usage = &mut self.usage[worker];
        usage.requests -= weight.requests;
        usage.prompt_bytes -= weight.prompt_bytes;
        usage.kv_tokens -= weight.kv_tokens;
        self.prompts[worker] -= bytes;
        self.past[worker].set(now, (*usage, self.prompts[worker]));
    }

    fn poll_ms(&self) -> u32 {
        if let Way::Polled(every) = self.way { every } else { POLL_MS }
    }

    /// The living, of decodes those with room, as admission looks at them.
    fn candidates(&self, demand: &Demand, draw: Draw, look: &Look<'_>) -> Pair<Vec<Candidate>> {
        let holder = |cache| (0..self.prefills).find(|&id| identity(id) == cache);
        let alive = |cache| holder(cache).is_some_and(|id| !self.dead[id]);
        let rendezvous = demand.rendezvous((0..self.prefills).map(identity), alive);
        let first = demand.prefix_match.holders().chain(rendezvous).filter_map(holder);
        let decodes = self.usage.len() - self.prefills;
        let orders = match self.way.policy() {
            Policy::Predicted => Pair {
                prefill: SampleOrder::of(self.prefills, draw, first),
                decode: SampleOrder::of(decodes, draw.second(), []),
            },
            _ => {
                Pair { prefill: SampleOrder::all(self.prefills), decode: SampleOrder::all(decodes) }
            }
        };
        Pair {
            prefill: self.gather(orders.prefill, 0, look),
            decode: self.gather(orders.decode, self.prefills, look),
        }
    }

    fn gather(&self, order: SampleOrder, base: usize, look: &Look<'_>) -> Vec<Candidate> {
        let mut all = Vec::new();
        let mut set = CandidateSet::new(&mut all, order.sample_size());
        for id in order.map(|at| base + at).filter(|&id| !self.dead[id]) {
            let candidate = self.candidate(id, look);
            if set.accepts(0) && candidate.admits(look.weight, look.patience) {
                set.push(candidate);
            }
            if set.is_complete() {
                break;
            }
        }
        all
    }

    fn candidate(&self, id: usize, look: &Look<'_>) -> Candidate {
        let &Look { pool, views, now, .. } = look;
        let agents = self.way == Way::Agents;
        Candidate {
            id,
            usage: self.usage[id],
            limits: if id < self.prefills { WorkerLimits::NONE } else { self.limits },
            queue_head: self.queues[id].head(now as u64),
            group: 0,
            worker: identity(id),
            rank: 0,
            rates: self.workers[id].rates(&pool, now as u64),
            load: agents.then(|| self.load(id, views, now)),
            cached_blocks: self.index.blocks_of(identity(id)),
            reported: Some(self.reported(id, views, now)),
            measured: agents,
        }
    }

    /// What the engine told at the last poll.
    fn reported(&self, id: usize, views: &Views, now: f64) -> ReportedLoad {
        let every = f64::from(self.poll_ms());
        let age = (now + self.phase * every) % every;
        let View { requests, tokens, .. } = views.polled(id, now, age);
        let (own, _) = self.past[id].before(now, age);
        ReportedLoad::excluding(requests as u64, tokens, own)
    }

    /// The last frame, less what the gateway had on the worker when it came.
    fn load(&self, id: usize, views: &Views, now: f64) -> Load {
        let View { requests, waiting_bytes, itl_ms, free, kv, .. } = views.frame(id, now);
        let (own, own_bytes) = self.past[id].before(now, views.age_ms);
        let others = requests - own.requests as f64;
        Load {
            age_ms: views.age_ms as f32,
            others_requests: others.max(0.0) as f32,
            others_waiting_bytes: (waiting_bytes - own_bytes as f64).max(0.0) as f32,
            itl_us: (itl_ms * 1000.0) as f32,
            tx_free_bytes_per_ms: free as f32,
            rx_free_bytes_per_ms: free as f32,
            tx_kv_bytes_per_ms: kv as f32,
            rx_kv_bytes_per_ms: kv as f32,
        }
    }

    /// Steps that agents measured are evidence of each decode's speed.
    fn watch_steps(&self, pool: &EngineRates, views: &Views, now: f64) {
        for id in self.prefills..self.usage.len() {
            let load = self.load(id, views, now);
            if load.itl_us > 0.0 {
                let others = load.others_requests * pool.request_tokens;
                let batch = self.usage[id].kv_tokens as f32 + others;
                let step_us = step_us_of_idle(load.itl_us, batch, &self.assumptions);
                self.pool.on_pool_decode_step(step_us, now as u64);
                self.workers[id].on_decode_step(step_us, now as u64);
            }
        }
    }
}

fn identity(worker: usize) -> u64 {
    (worker as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The truth of the model, each number wrong by a factor of two.
fn assumptions(engine: &Engine, wrong: &mut Chance) -> Assumptions {
    let mut off = |truth: f64| (truth * wrong.twofold()) as f32;
    Assumptions {
        rates: EngineRates {
            prefill_us_per_byte: off(engine.prefill_us_per_token / BYTES_PER_TOKEN),
            step_us: off(engine.step_ms * 1000.0),
            kv_bytes_per_byte: off(engine.kv_bytes_per_token / BYTES_PER_TOKEN),
            output_tokens: off(343.0),
            request_tokens: off(12_000.0),
            uncached_share: off(0.5).min(1.0),
        },
        link: LinkPrior {
            link: Link { rtt_us: 100.0, bytes_per_ms: off(engine.nic_bytes_per_ms) },
            weight_ms: 50.0,
        },
        context_doubles_bytes: off(engine.prefill_us_per_token
            / engine.prefill_us_per_context_token
            * BYTES_PER_TOKEN),
        batch_doubles_tokens: off(engine.step_ms * 1000.0 / engine.step_us_per_kv_token),
    }
}
