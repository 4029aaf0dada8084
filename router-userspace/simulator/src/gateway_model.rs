//! [`GatewayModel`]: a modelled gateway, which uses `router_core::schedule`.
//!
//! It has only the information of a real gateway: bytes instead of tokens, its own leases without
//! delay, and everything else with its age. Each of its assumptions about engines is wrong by a factor
//! of two.

use std::collections::VecDeque;

use crate::FleetSetup;
use crate::contender::{Chooser, Contender, InfoSource};
use crate::engine_model::EngineModel;
use crate::history::History;
use crate::observed::{ObservedWorker, ObservedWorkers};
use crate::random::Random;
use router_core::fleet::{
    EngineRates, Link, LinkPrior, LinkTable, Load, PolledLoad, PrefillQueue, PrefillSample,
    RateEstimators, Usage, WorkerLimits,
};
use router_core::pair::Pair;
use router_core::schedule::{
    AgentTrust, Assumptions, Candidate, CandidateSet, ChoiceInput, Demand, Draw, IndexCapacity,
    Objective, Policy, PrefixIndex, SampleOrder, Tuning, prefix_key, step_us_of_idle,
};

/// Mean bytes per token, to convert a trace's tokens to prompts.
pub(crate) const BYTES_PER_TOKEN: f64 = 4.2;

/// KV tokens that admission reserves for a response of unknown length.
const OUTPUT_TOKENS: u64 = 512;
/// Interval of polling engines, unless the policy defines its own.
const POLL_MS: u32 = 1000;

/// A request that a gateway sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SentRequest {
    pub(crate) pair: Pair<usize>,
    prefill: Usage,
    decode: Usage,
    bytes: u64,
    at_ms: f64,
    /// Predicted work of the request and those before it. The measured time is compared with it.
    ahead_bytes: f32,
    ahead_ms: f32,
    transfer_ms: f32,
    /// Whether decode had no capacity yet; then the time is no evidence of the prefill's speed.
    decode_full: bool,
    ticket: u64,
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// No decode has capacity: the request waits in the gateway.
    Full,
    /// No worker of a leg is alive.
    NoWorker,
}

/// A request as a gateway receives it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptRequest<'a> {
    pub(crate) bytes: u64,
    pub(crate) blocks: &'a [u64],
    pub(crate) waited_ms: f64,
}

/// The inputs that are common to all candidates of one request.
struct CollectContext<'a> {
    pool: EngineRates,
    observed: &'a ObservedWorkers,
    now: f64,
    weight: Usage,
    trust: AgentTrust,
}

#[derive(Debug)]
pub(crate) struct GatewayModel {
    contender: Contender,
    source: InfoSource,
    prefills: usize,
    random: Random,
    turn: u64,
    usage: Vec<Usage>,
    /// Past usage of each worker and past bytes of whole prompts, to subtract from frames.
    past: Vec<History<(Usage, u64)>>,
    prompts: Vec<u64>,
    queues: Vec<PrefillQueue>,
    limits: WorkerLimits,
    /// Requests that wait for capacity, in order.
    pub(crate) waiting: VecDeque<usize>,
    dead: Vec<bool>,
    pool: RateEstimators,
    workers: Vec<RateEstimators>,
    assumptions: Assumptions,
    tuning: Tuning,
    agent_noise: f64,
    index: PrefixIndex,
    links: LinkTable,
    /// Offset of its polls, as a share of the interval.
    phase: f64,
}

impl GatewayModel {
    pub(crate) fn new(
        contender: Contender,
        FleetSetup { engine, prefills, decodes, tuning, perturbation, .. }: &FleetSetup,
        seed: u64,
        number: u64,
    ) -> GatewayModel {
        let (prefills, decodes) = (*prefills, *decodes);
        let mut random = Random::new(seed, 100 + number);
        // All gateways of a seed have the same wrong assumptions.
        let mut wrong = Random::new(seed, 3);
        let assumptions = assumptions(engine, perturbation.assumptions, &mut wrong);
        let cache = f64::from(engine.prefix_cache_tokens)
            * BYTES_PER_TOKEN
            * wrong.times_or_over(perturbation.assumptions);
        let remembers = contender.chooser == Chooser::Policy(Policy::CacheAware);
        let capacity = IndexCapacity {
            blocks: 1 << 17,
            caches: prefills,
            // sglang-router's tree does not age; this index models the engine's cache.
            cache_bytes: if remembers { u64::MAX } else { cache as u64 },
        };
        let workers = prefills + decodes;
        GatewayModel {
            contender,
            source: contender.source,
            prefills,
            phase: random.unit(),
            random,
            turn: number,
            usage: vec![Usage::default(); workers],
            prompts: vec![0; workers],
            queues: vec![PrefillQueue::default(); workers],
            // As engines report them.
            limits: WorkerLimits {
                requests: engine.max_running as u64,
                kv_tokens: engine.kv_tokens,
            },
            waiting: VecDeque::new(),
            past: (0..workers).map(|_| History::default()).collect(),
            dead: vec![false; workers],
            pool: RateEstimators::of_pool(),
            workers: (0..workers).map(|_| RateEstimators::with_tuning(tuning.speed)).collect(),
            assumptions,
            tuning: *tuning,
            agent_noise: perturbation.agents,
            index: PrefixIndex::new(capacity),
            links: LinkTable::new(1024),
        }
    }

    /// Chooses a pair for a request and leases it.
    pub(crate) fn send(
        &mut self,
        prompt: PromptRequest<'_>,
        observed: &ObservedWorkers,
        now: f64,
    ) -> Result<SentRequest, NotSent> {
        let now_ms = now as u64;
        let pool = self.pool.rates(&self.assumptions.rates, now_ms);
        if self.source == InfoSource::Agents {
            self.record_measured_steps(&pool, observed, now);
        }
        let (prefills, decodes) = self.dead.split_at(self.prefills);
        if [prefills, decodes].iter().any(|leg| leg.iter().all(|dead| *dead)) {
            return Err(NotSent::NoWorker);
        }
        let kv_tokens = prompt.bytes / 4 + OUTPUT_TOKENS;
        let draw = Draw { chance: self.random.next(), turn: self.turn };
        self.turn += 1;
        let demand = Demand {
            prompt_bytes: prompt.bytes,
            kv_tokens,
            prefix_match: self.index.lookup(prompt.blocks),
            prefix_key: prefix_key(prompt.blocks),
        };
        let weight = Usage { requests: 1, kv_tokens, ..Usage::default() };
        let trust = AgentTrust::after(prompt.waited_ms as u64, u64::from(self.poll_ms()));
        let context_of_request = CollectContext { pool, observed, now, weight, trust };
        let Pair { prefill, decode } = self.candidates(&demand, draw, &context_of_request);
        let input = ChoiceInput {
            demand,
            candidates: Pair { prefill: &prefill, decode: &decode },
            links: (self.source == InfoSource::Agents).then_some(&self.links),
            assumptions: &self.assumptions,
            objective: Objective::default(),
            tuning: &self.tuning,
            now_ms,
            draw,
        };
        let chosen = self.contender.choose(&input).ok_or(NotSent::Full)?;
        let estimate = chosen.estimate.unwrap_or_default();
        let work_bytes = chosen.work_bytes.unwrap_or(prompt.bytes as f32);
        let backlog_ms = estimate.wait_ms + estimate.prefill_ms;
        let rates = self.workers[chosen.pair.prefill].rates(&pool, now_ms);
        let sent = SentRequest {
            pair: chosen.pair,
            prefill: Usage { requests: 1, prompt_bytes: work_bytes as u64, ..Usage::default() },
            decode: Usage { requests: 1, kv_tokens, ..Usage::default() },
            bytes: prompt.bytes,
            at_ms: now,
            ahead_bytes: backlog_ms * 1000.0 / rates.prefill_us_per_byte,
            ahead_ms: backlog_ms,
            transfer_ms: estimate.transfer_ms,
            decode_full: estimate.admission_ms > 0.0,
            ticket: self.queues[chosen.pair.prefill].push(work_bytes, now_ms),
        };
        self.count(sent.pair.prefill, sent.prefill, sent.bytes, now);
        self.count(sent.pair.decode, sent.decode, sent.bytes, now);
        self.index.insert(identity(sent.pair.prefill), prompt.blocks);
        self.pool.on_request(kv_tokens as f32, now_ms);
        Ok(sent)
    }

    /// Records that prefill has answered: the prompt is computed and its KV cache sent.
    pub(crate) fn on_prefilled(&mut self, sent: &SentRequest, now: f64) {
        self.leave(sent, now);
        // Without a prediction there is nothing to compare the time with.
        if sent.decode_full || sent.ahead_ms <= 0.0 {
            return;
        }
        let took_ms = (now - sent.at_ms) as f32;
        let work_ms = (took_ms - sent.transfer_ms).max(took_ms / 5.0);
        let rates = self.pool.rates(&self.assumptions.rates, now as u64);
        let sample = PrefillSample {
            work_bytes: sent.ahead_bytes,
            ms: work_ms,
            predicted_ms: sent.ahead_ms,
            usual_us_per_byte: rates.prefill_us_per_byte,
            sent_ms: sent.at_ms as u64,
            now_ms: now as u64,
        };
        self.workers[sent.pair.prefill].on_prefill(&self.pool, sample);
    }

    /// Records the end of a response, with one event per token.
    pub(crate) fn on_response(&mut self, sent: &SentRequest, tokens: u32, itl_ms: f64, now: f64) {
        let batch = self.usage[sent.pair.decode].kv_tokens as f32;
        self.uncount(sent.pair.decode, sent.decode, sent.bytes, now);
        self.pool.on_response(tokens as f32, now as u64);
        if self.source != InfoSource::Agents && itl_ms > 0.0 {
            let step_us = step_us_of_idle(itl_ms as f32 * 1000.0, batch, &self.assumptions);
            self.pool.on_pool_decode_step(step_us, now as u64);
            self.workers[sent.pair.decode].on_decode_step(step_us, now as u64);
        }
    }

    /// Records a failed request. `prefilled` is whether its prefill had answered.
    pub(crate) fn on_failure(&mut self, sent: &SentRequest, prefilled: bool, now: f64) {
        if !prefilled {
            self.leave(sent, now);
        }
        self.uncount(sent.pair.decode, sent.decode, sent.bytes, now);
    }

    /// Excludes a worker that cannot be reached.
    pub(crate) fn on_worker_lost(&mut self, worker: usize) {
        self.dead[worker] = true;
    }

    /// Records a transfer that an agent measured.
    pub(crate) fn on_transfer_report(
        &mut self,
        pair: Pair<usize>,
        prompt: f32,
        bytes: f32,
        ms: f32,
        now: f64,
    ) {
        let (prefill, decode) = (identity(pair.prefill), identity(pair.decode));
        self.links.on_transfer(prefill, decode, bytes, ms, now as u64);
        self.pool.on_kv_transfer(prompt, bytes, now as u64);
    }

    fn leave(&mut self, sent: &SentRequest, now: f64) {
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
        if let InfoSource::Polled(every) = self.source { every } else { POLL_MS }
    }

    /// Returns the live workers as candidates; of decodes, those with capacity.
    fn candidates(
        &self,
        demand: &Demand,
        draw: Draw,
        context_of_request: &CollectContext<'_>,
    ) -> Pair<Vec<Candidate>> {
        let holder = |cache| (0..self.prefills).find(|&id| identity(id) == cache);
        let alive = |cache| holder(cache).is_some_and(|id| !self.dead[id]);
        let owner = demand.owner((0..self.prefills).map(identity), alive);
        let first = demand.prefix_match.holders().chain(owner).filter_map(holder);
        let decodes = self.usage.len() - self.prefills;
        let orders = match self.contender.samples() {
            true => Pair {
                prefill: SampleOrder::of(self.prefills, draw, first),
                decode: SampleOrder::of(decodes, draw.second(), []),
            },
            false => {
                Pair { prefill: SampleOrder::all(self.prefills), decode: SampleOrder::all(decodes) }
            }
        };
        Pair {
            prefill: self.gather(orders.prefill, 0, context_of_request),
            decode: self.gather(orders.decode, self.prefills, context_of_request),
        }
    }

    fn gather(
        &self,
        order: SampleOrder,
        base: usize,
        context_of_request: &CollectContext<'_>,
    ) -> Vec<Candidate> {
        let mut all = Vec::new();
        let mut set = CandidateSet::new(&mut all, order.sample_size());
        for id in order.map(|at| base + at).filter(|&id| !self.dead[id]) {
            let candidate = self.candidate(id, context_of_request);
            if set.accepts(0)
                && candidate.admits(context_of_request.weight, context_of_request.trust)
            {
                set.push(candidate);
            }
            if set.is_complete() {
                break;
            }
        }
        all
    }

    fn candidate(&self, id: usize, context_of_request: &CollectContext<'_>) -> Candidate {
        let &CollectContext { pool, observed, now, .. } = context_of_request;
        let agents = self.source == InfoSource::Agents;
        Candidate {
            id,
            usage: self.usage[id],
            limits: if id < self.prefills { WorkerLimits::NONE } else { self.limits },
            queue_head: self.queues[id].head(now as u64),
            group: 0,
            worker: identity(id),
            rank: 0,
            rates: self.workers[id].rates(&pool, now as u64),
            load: agents.then(|| self.load(id, observed, now)),
            cached_blocks: self.index.blocks_of(identity(id)),
            reported: Some(self.reported(id, observed, now)),
            measured: agents,
        }
    }

    /// Returns the engine's report at the last poll.
    fn reported(&self, id: usize, observed: &ObservedWorkers, now: f64) -> PolledLoad {
        let every = f64::from(self.poll_ms());
        let age = (now + self.phase * every) % every;
        let ObservedWorker { requests, tokens, .. } = observed.polled(id, now, age);
        let (own, _) = self.past[id].before(now, age);
        PolledLoad::excluding(requests as u64, tokens, own)
    }

    /// Returns the last frame less this gateway's usage at the time of its measurement.
    fn load(&self, id: usize, observed: &ObservedWorkers, now: f64) -> Load {
        let ObservedWorker { requests, waiting_bytes, itl_ms, free, kv, .. } =
            observed.frame(id, now);
        let (own, own_bytes) = self.past[id].before(now, observed.age_ms);
        let mut noise = Random::new(now.to_bits() ^ id as u64, 5);
        let waiting_bytes = waiting_bytes * (self.agent_noise * noise.normal()).exp();
        let others = requests - own.requests as f64;
        Load {
            age_ms: observed.age_ms as f32,
            others_requests: others.max(0.0) as f32,
            others_waiting_bytes: (waiting_bytes - own_bytes as f64).max(0.0) as f32,
            itl_us: (itl_ms * 1000.0) as f32,
            tx_free_bytes_per_ms: free as f32,
            rx_free_bytes_per_ms: free as f32,
            tx_kv_bytes_per_ms: kv as f32,
            rx_kv_bytes_per_ms: kv as f32,
        }
    }

    /// Records the decode steps that agents measured.
    fn record_measured_steps(&self, pool: &EngineRates, observed: &ObservedWorkers, now: f64) {
        for id in self.prefills..self.usage.len() {
            let load = self.load(id, observed, now);
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

/// Returns the model's parameters, each too large or too small by the factor `times`.
fn assumptions(engine: &EngineModel, times: f64, wrong: &mut Random) -> Assumptions {
    let mut off = |truth: f64| (truth * wrong.times_or_over(times)) as f32;
    Assumptions {
        rates: EngineRates {
            prefill_us_per_byte: off(engine.prefill_us_per_token / BYTES_PER_TOKEN),
            step_us: off(engine.step_ms * 1000.0),
            kv_bytes_per_byte: off(engine.kv_bytes_per_token / BYTES_PER_TOKEN),
            output_tokens: off(343.0),
            request_tokens: off(12_000.0),
            ..EngineRates::default()
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
