//! [`Estimate`]: the predicted milliseconds of a request on a pair.
//!
//! Prefill is a queue that works at a learned rate; the KV cache follows chunk by chunk while
//! prefill computes; decode's step grows with the KV tokens that it reads. What agents measured
//! counts where it is fresh; where it is not, the pool's median and a penalty stand for it.

use serde::Serialize;

use super::question::{Ask, Candidate};
use super::unknown::Typical;
use crate::fleet::{Link, LinkPrior, Load, Rates};
use crate::pair::Pair;

/// What is taken for granted until it is learned, and the shapes that are not learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assumptions {
    pub rates: Rates,
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
        rates: Rates {
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
/// What a transfer gets at least of a link that others fill with KV cache: a third.
const FAIR_SHARE: f32 = 1.0 / 3.0;
const MS_PER_US: f32 = 1e-3;
/// The part of a prompt that the worker a rendezvous hash names is thought to hold, where the
/// index knows nothing: some other gateway may have sent it there.
const RENDEZVOUS_SHARE: f32 = 0.2;

/// The predicted milliseconds of one request on one pair, term by term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// For the prompts before this one.
    pub wait_ms: f32,
    pub prefill_ms: f32,
    /// What the work of this prompt costs those who come behind it.
    pub pressing_ms: f32,
    /// Of the KV cache, as far as it does not happen during prefill.
    pub transfer_ms: f32,
    /// One decode step with this request in the batch.
    pub itl_ms: f32,
    /// What the others in the batch lose by this request, all together.
    pub crowding_ms: f32,
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
        self.ttft_ms() + self.pressing_ms
    }

    pub fn ttft_ms(&self) -> f32 {
        self.wait_ms + self.prefill_ms + self.transfer_ms
    }
}

/// The terms of a prefill worker alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillTerms {
    pub(super) wait_ms: f32,
    pub(super) prefill_ms: f32,
    pub(super) tx_bytes_per_ms: f32,
    cached_bytes: f32,
    work_bytes: f32,
}

/// The terms of a decode worker alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DecodeTerms {
    pub(super) itl_ms: f32,
    pub(super) crowding_ms: f32,
    pub(super) rx_bytes_per_ms: f32,
}

/// One request's estimates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimator<'a> {
    pub(super) ask: &'a Ask,
    pub(super) typical: Pair<Typical>,
    /// Inverses of the assumptions of the same name: a division a candidate is felt.
    pub(super) per_context: f32,
    pub(super) per_batch: f32,
    /// Requests that a work delays.
    pub(super) pressure: f32,
    /// The prefill that other gateways would take for this prompt.
    pub(super) rendezvous: Option<u64>,
}

impl Estimator<'_> {
    pub(super) fn prefill(&self, candidate: &Candidate) -> PrefillTerms {
        let rates = &candidate.rates;
        let prompt = self.ask.prompt_bytes as f32;
        let cached_bytes = self.cached_bytes(candidate.worker, prompt);
        let work_bytes = self.work_bytes(prompt - cached_bytes, cached_bytes);
        let (load, _) = self.typical.prefill.or_measured(candidate.load.as_ref());
        PrefillTerms {
            wait_ms: self.wait_ms(candidate),
            prefill_ms: work_bytes * rates.prefill_us_per_byte * MS_PER_US,
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
        let others = load.others_waiting_bytes * rates.uncached_share;
        let backlog_bytes = candidate.usage.prompt_bytes as f32 + others;
        backlog_bytes * rates.prefill_us_per_byte * MS_PER_US + penalty_ms
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
        let more_ms = rates.step_us * MS_PER_US * self.ask.kv_tokens as f32 * self.per_batch;
        DecodeTerms {
            itl_ms: now_ms + more_ms,
            crowding_ms: streams * more_ms * rates.output_tokens + penalty_ms,
            rx_bytes_per_ms: free(load.rx_free_bytes_per_ms, load.rx_kv_bytes_per_ms),
        }
    }

    pub(super) fn pair(
        &self,
        p: &PrefillTerms,
        d: &DecodeTerms,
        link: Link,
        rates: &Rates,
    ) -> Estimate {
        let bytes_per_ms = p.tx_bytes_per_ms.min(d.rx_bytes_per_ms).min(link.bytes_per_ms);
        let prompt = self.ask.prompt_bytes as f32;
        let ms_per_byte = rates.kv_bytes_per_byte / bytes_per_ms.max(1.0);
        let last_chunk_ms = prompt.min(CHUNK_BYTES) * ms_per_byte;
        let behind_ms = prompt * ms_per_byte - p.prefill_ms;
        Estimate {
            wait_ms: p.wait_ms,
            prefill_ms: p.prefill_ms,
            pressing_ms: p.prefill_ms * self.pressure,
            transfer_ms: behind_ms.max(last_chunk_ms) + link.rtt_us / 1000.0,
            itl_ms: d.itl_ms,
            crowding_ms: d.crowding_ms,
            output_tokens: rates.output_tokens,
            cached_bytes: p.cached_bytes,
            work_bytes: p.work_bytes,
        }
    }

    fn cached_bytes(&self, worker: u64, prompt: f32) -> f32 {
        let held = (self.ask.held.bytes_of(worker) as f32).min(prompt);
        if self.rendezvous == Some(worker) { held.max(prompt * RENDEZVOUS_SHARE) } else { held }
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

impl Typical {
    #[inline]
    /// The load of a worker, or what is typical of its pool, and what not knowing costs.
    fn or_measured<'a>(&'a self, load: Option<&'a Load>) -> (&'a Load, f32) {
        match load {
            Some(load) if !load.is_stale() => (load, 0.0),
            _ => (&self.load, if self.known { PENALTY_MS } else { 0.0 }),
        }
    }
}
