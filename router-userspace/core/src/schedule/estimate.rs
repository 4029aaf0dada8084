//! [`Estimate`]: the predicted milliseconds of a request on a pair.
//!
//! Prefill is a queue that works at a learned rate; the KV cache follows chunk by chunk while
//! prefill computes; decode's step grows with the KV tokens that it reads. What agents measured
//! counts where it is fresh; where it is not, the pool's median and a penalty stand for it.

use serde::Serialize;

use super::fallback_load::FallbackLoad;
use super::input::{Candidate, Demand};
use crate::fleet::{EngineRates, Limits, Link, LinkPrior, Load, QueueHead};
use crate::pair::Pair;

/// What is taken for granted until it is learned, and the shapes that are not learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assumptions {
    pub rates: EngineRates,
    #[serde(skip)]
    pub link: LinkPrior,
    /// Attention makes a byte of prompt cost twice as much where this many stand before it.
    pub context_doubles_bytes: f32,
    /// KV tokens in a batch that make its decode step take twice as long as an empty one.
    pub batch_doubles_tokens: f32,
}

impl Assumptions {
    /// For a dense model of about 30 billion parameters on two H100: 14,000 tokens of prompt a
    /// second, 256 KiB of KV cache a token, a 20 ms step, 100 Gbit/s.
    pub const USUAL: Assumptions = Assumptions {
        rates: EngineRates {
            prefill_us_per_byte: 18.0,
            step_us: 20_000.0,
            kv_bytes_per_byte: 65_536.0,
            output_tokens: 300.0,
            request_tokens: 8_000.0,
            uncached_share: 0.8,
        },
        link: LinkPrior { link: Link { rtt_us: 100.0, bytes_per_ms: 12.5e6 }, weight_ms: 50.0 },
        context_doubles_bytes: 128e3,
        batch_doubles_tokens: 250e3,
    };
}

/// Engines send KV cache after each chunk of prefill: of a prompt that computes more slowly
/// than it is sent, only the last chunk is waited for. 8,192 tokens is SGLang's usual chunk.
const CHUNK_BYTES: f32 = 32_768.0;
/// Not knowing how a worker fares is as bad as a request of this length before ours.
pub const PENALTY_MS: f32 = 25.0;
/// Of a prompt at work, so much is counted as done at most: how long it takes is only thought.
const MOST_DONE: f32 = 0.5;
/// What a transfer gets at least of a link that others fill with KV cache: a third.
const FAIR_SHARE: f32 = 1.0 / 3.0;
const MS_PER_US: f32 = 1e-3;
/// The part of its prefill that a prompt is hoped to be spared at the worker that a rendezvous
/// hash names, where the index knows nothing of the conversation: another gateway may have sent
/// an earlier turn there. Never counted as time, only as a reason to go there.
const RENDEZVOUS_SHARE: f32 = 0.5;
/// The same where no agent tells how busy that worker is with the others' requests.
const BLIND_RENDEZVOUS_SHARE: f32 = 0.2;

/// The predicted milliseconds of one request on one pair, term by term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// For the prompts before this one.
    pub wait_ms: f32,
    /// For room at decode, longer than for the prompts before.
    pub admission_ms: f32,
    pub prefill_ms: f32,
    /// What this worker is preferred by, in the hope that another gateway sent it an earlier turn
    /// of the conversation.
    pub affinity_bonus_ms: f32,
    /// What the work of this prompt costs those who come behind it.
    pub queue_cost_ms: f32,
    /// Of the KV cache, as far as it does not happen during prefill.
    pub transfer_ms: f32,
    /// One decode step with this request in the batch.
    pub itl_ms: f32,
    /// What the others in the batch lose by this request, all together.
    pub batch_cost_ms: f32,
    /// Tokens that the answer is thought to have.
    pub output_tokens: f32,
    /// Prompt bytes that are thought to be in the prefill's cache.
    pub cached_bytes: f32,
    /// The prefill's work in bytes of uncached prompt, for its lease.
    pub work_bytes: f32,
}

impl Estimate {
    /// What the prefill leg and the transfer cost, to this request and to later ones.
    pub(super) fn first_leg_ms(&self) -> f32 {
        self.ttft_ms() + self.queue_cost_ms - self.affinity_bonus_ms
    }

    pub fn ttft_ms(&self) -> f32 {
        self.wait_ms + self.admission_ms + self.prefill_ms + self.transfer_ms
    }
}

/// The terms of a prefill worker alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillTerms {
    pub(super) wait_ms: f32,
    pub(super) prefill_ms: f32,
    pub(super) tx_bytes_per_ms: f32,
    affinity_bonus_ms: f32,
    cached_bytes: f32,
    work_bytes: f32,
}

/// The terms of a decode worker alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DecodeTerms {
    pub(super) itl_ms: f32,
    pub(super) batch_cost_ms: f32,
    /// Until there is room.
    pub(super) admission_ms: f32,
    pub(super) rx_bytes_per_ms: f32,
}

/// One request's estimates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimator<'a> {
    pub(super) demand: &'a Demand,
    pub(super) typical: Pair<FallbackLoad>,
    /// Inverses of the assumptions of the same name: a division a candidate is felt.
    pub(super) per_context: f32,
    pub(super) per_batch: f32,
    /// What others have waiting at a prefill, on average.
    pub(super) others_waiting_bytes: f32,
    /// Requests that a work delays.
    pub(super) pressure: f32,
    /// The prefill that other gateways would take for this prompt, were all idle.
    pub(super) rendezvous: Option<u64>,
}

impl Estimator<'_> {
    pub(super) fn prefill(&self, candidate: &Candidate) -> PrefillTerms {
        let rates = &candidate.rates;
        let prompt = self.demand.prompt_bytes as f32;
        let cached_bytes = self.cached_bytes(candidate.cache(), prompt);
        let work_bytes = self.work_bytes(prompt - cached_bytes, cached_bytes);
        let prefill_ms = work_bytes * rates.prefill_us_per_byte * MS_PER_US;
        let (load, _) = self.typical.prefill.or_measured(candidate.load.as_ref());
        PrefillTerms {
            wait_ms: self.wait_ms(candidate),
            prefill_ms,
            affinity_bonus_ms: prefill_ms * self.hope(candidate),
            tx_bytes_per_ms: free(load.tx_free_bytes_per_ms, load.tx_kv_bytes_per_ms),
            cached_bytes,
            work_bytes,
        }
    }

    /// For the prompts before this one, ours and everybody's: what a candidate costs at least.
    #[inline]
    pub(super) fn wait_ms(&self, candidate: &Candidate) -> f32 {
        let rates = &candidate.rates;
        let (load, penalty_ms) = self.typical.prefill.or_measured(candidate.load.as_ref());
        let others = self.by_now(load, rates) * rates.uncached_share;
        let backlog_bytes = candidate.usage.prompt_bytes as f32 + others;
        let QueueHead { work_bytes, busy_ms } = candidate.queue_head;
        let backlog_ms = backlog_bytes * rates.prefill_us_per_byte * MS_PER_US;
        let head_ms = work_bytes * rates.prefill_us_per_byte * MS_PER_US;
        (backlog_ms - busy_ms.min(head_ms * MOST_DONE)).max(0.0) + penalty_ms
    }

    /// Bytes of others that wait now: what was seen, and the longer ago that is beside the time
    /// that a queue takes, the more of it is thought to be as anywhere.
    #[inline]
    fn by_now(&self, load: &Load, rates: &EngineRates) -> f32 {
        let (seen, mean) = (load.others_waiting_bytes, self.others_waiting_bytes);
        let drains_ms = seen.max(mean) * rates.prefill_us_per_byte * MS_PER_US;
        let kept = (drains_ms + 0.01) / (drains_ms + load.age_ms + 0.01);
        mean + (seen - mean) * kept
    }

    #[inline]
    pub(super) fn decode(&self, candidate: &Candidate) -> DecodeTerms {
        let rates = &candidate.rates;
        let typical = &self.typical.decode;
        let (load, penalty_ms) = typical.or_measured(candidate.load.as_ref());
        let streams = candidate.usage.requests as f32 + load.others_requests;
        let batch = candidate.usage.kv_tokens as f32 + load.others_requests * rates.request_tokens;
        // The kernel's view of the steps is better than any model of them, but it says nothing
        // of the requests that are on their way, so that the model says how much they add.
        let now_ms = rates.step_us * MS_PER_US * (1.0 + batch * self.per_batch);
        let more_ms = rates.step_us * MS_PER_US * self.demand.kv_tokens as f32 * self.per_batch;
        DecodeTerms {
            itl_ms: now_ms + more_ms,
            admission_ms: self.admission_steps(candidate, streams, batch) * now_ms,
            batch_cost_ms: streams * more_ms * rates.output_tokens + penalty_ms,
            rx_bytes_per_ms: free(load.rx_free_bytes_per_ms, load.rx_kv_bytes_per_ms),
        }
    }

    /// Decode steps until there is room: streams are thought to end evenly over the time that an
    /// answer takes, each with its share of the KV tokens.
    fn admission_steps(&self, candidate: &Candidate, streams: f32, batch: f32) -> f32 {
        let Limits { requests, kv_tokens } = candidate.limits;
        let tokens_over = batch + self.demand.kv_tokens as f32 - kv_tokens as f32;
        let streams_over = streams + 1.0 - requests as f32;
        if streams < 1.0 || (tokens_over <= 0.0 && streams_over <= 0.0) {
            return 0.0;
        }
        let part = (tokens_over / batch.max(1.0)).max(streams_over / streams);
        part * candidate.rates.output_tokens
    }

    pub(super) fn pair(
        &self,
        p: &PrefillTerms,
        d: &DecodeTerms,
        link: Link,
        rates: &EngineRates,
    ) -> Estimate {
        let bytes_per_ms = p.tx_bytes_per_ms.min(d.rx_bytes_per_ms).min(link.bytes_per_ms);
        let prompt = self.demand.prompt_bytes as f32;
        let ms_per_byte = rates.kv_bytes_per_byte / bytes_per_ms.max(1.0);
        let last_chunk_ms = prompt.min(CHUNK_BYTES) * ms_per_byte;
        let behind_ms = prompt * ms_per_byte - p.prefill_ms;
        Estimate {
            wait_ms: p.wait_ms,
            admission_ms: (d.admission_ms - p.wait_ms).max(0.0),
            prefill_ms: p.prefill_ms,
            affinity_bonus_ms: p.affinity_bonus_ms * (1.0 + self.pressure),
            queue_cost_ms: p.prefill_ms * self.pressure,
            transfer_ms: behind_ms.max(last_chunk_ms) + link.rtt_us / 1000.0,
            itl_ms: d.itl_ms,
            batch_cost_ms: d.batch_cost_ms,
            output_tokens: rates.output_tokens,
            cached_bytes: p.cached_bytes,
            work_bytes: p.work_bytes,
        }
    }

    /// The part of a prompt that another gateway is hoped to have sent here.
    fn hope(&self, candidate: &Candidate) -> f32 {
        match candidate.load {
            _ if self.rendezvous != Some(candidate.cache()) => 0.0,
            Some(load) if !load.is_stale() => RENDEZVOUS_SHARE,
            _ => BLIND_RENDEZVOUS_SHARE,
        }
    }

    fn cached_bytes(&self, cache: u64, prompt: f32) -> f32 {
        (self.demand.prefix_match.bytes_of(cache) as f32).min(prompt)
    }

    /// Uncached bytes, weighed by the attention over all that stands before them.
    fn work_bytes(&self, uncached: f32, cached: f32) -> f32 {
        uncached * (1.0 + (cached + uncached * 0.5) * self.per_context)
    }
}

/// What is to be had of a link whose `free` part carries `kv` already.
fn free(free: f32, kv: f32) -> f32 {
    if free > 0.0 { (free - kv).max(free * FAIR_SHARE) } else { f32::INFINITY }
}

/// A decode step as one of an idle engine, from one that was measured over a batch.
pub fn step_us_of_idle(itl_us: f32, batch_tokens: f32, assumptions: &Assumptions) -> f32 {
    itl_us / (1.0 + batch_tokens / assumptions.batch_doubles_tokens)
}

impl FallbackLoad {
    #[inline]
    /// The load of a worker, or what is typical of its pool, and what not knowing costs.
    fn or_measured<'a>(&'a self, load: Option<&'a Load>) -> (&'a Load, f32) {
        match load {
            Some(load) if !load.is_stale() => (load, 0.0),
            _ => (&self.load, if self.known { PENALTY_MS } else { 0.0 }),
        }
    }
}
