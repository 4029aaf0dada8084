//! [`Estimate`]: the predicted milliseconds of a request on a pair.
//!
//! Prefill is a queue with a learned service rate. The KV cache follows chunk by chunk while
//! prefill computes. The decode step grows with the KV tokens that it reads. Agents' measurements
//! are used while they are fresh; otherwise the pool's median and a penalty replace them.

use serde::Serialize;

use super::candidate::Candidate;
use super::demand::Demand;
use super::fallback_load::FallbackLoad;
use crate::fleet::{EngineRates, Link, Load, QueueHead, WorkerLimits};
use crate::pair::Pair;

/// Engines send KV cache after each chunk of prefill, so where prefill is slower than the link only
/// the last chunk's transfer adds latency. 8,192 tokens is SGLang's usual chunk.
const CHUNK_BYTES: f32 = 32_768.0;
/// Maximum share of the running prompt that counts as done, since its duration is an estimate.
const MAX_DONE: f32 = 0.5;
/// Minimum share of a link that a transfer gets beside other transfers of KV cache.
const FAIR_SHARE: f32 = 1.0 / 3.0;
const MS_PER_US: f32 = 1e-3;
/// Share of the prefill that may be cached at the worker that the rendezvous hash names, if the
/// index does not know the conversation: another gateway may have sent an earlier turn there. It is
/// a preference for that worker and does not shorten the predicted time.
const RENDEZVOUS_SHARE: f32 = 0.5;
/// [`RENDEZVOUS_SHARE`] without a fresh agent load: other gateways' requests there are unknown.
const BLIND_RENDEZVOUS_SHARE: f32 = 0.2;

/// The predicted milliseconds of one request on one pair, term by term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Time in the prefill queue behind earlier prompts.
    pub wait_ms: f32,
    /// Time until decode has capacity, beyond `wait_ms`.
    pub admission_ms: f32,
    /// Time to compute the uncached part of the prompt.
    pub prefill_ms: f32,
    /// Preference for the worker that other gateways would choose for this conversation. It lowers
    /// the cost and is not part of the predicted time.
    pub affinity_bonus_ms: f32,
    /// Delay that this prompt causes to later prompts in the prefill queue. Part of the cost only.
    pub queue_cost_ms: f32,
    /// Transfer of the KV cache, less the part that overlaps with prefill.
    pub transfer_ms: f32,
    /// Duration of one decode step with this request in the batch.
    pub itl_ms: f32,
    /// Sum of the delays that this request causes to the other requests of the decode batch.
    pub batch_cost_ms: f32,
    /// Expected tokens of the answer.
    pub output_tokens: f32,
    /// Prompt bytes that the prefill's cache is estimated to hold.
    pub cached_bytes: f32,
    /// Work of the prefill in bytes of uncached prompt, as its lease counts it.
    pub work_bytes: f32,
}

impl Estimate {
    /// Cost of the prefill leg and the transfer, to this request and to later ones.
    pub(super) fn first_leg_ms(&self) -> f32 {
        self.ttft_ms() + self.queue_cost_ms - self.affinity_bonus_ms
    }

    /// Predicted time to first token.
    pub fn ttft_ms(&self) -> f32 {
        self.wait_ms + self.admission_ms + self.prefill_ms + self.transfer_ms
    }
}

/// The terms of an estimate that depend on the prefill worker alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillTerms {
    pub(super) wait_ms: f32,
    pub(super) prefill_ms: f32,
    pub(super) tx_bytes_per_ms: f32,
    affinity_bonus_ms: f32,
    cached_bytes: f32,
    work_bytes: f32,
}

/// The terms of an estimate that depend on the decode worker alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DecodeTerms {
    pub(super) itl_ms: f32,
    pub(super) batch_cost_ms: f32,
    /// Time until the decode has capacity.
    pub(super) admission_ms: f32,
    pub(super) rx_bytes_per_ms: f32,
}

/// Computes the estimates of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimator<'a> {
    pub(super) demand: &'a Demand,
    pub(super) fallback: Pair<FallbackLoad>,
    /// Inverse of `context_doubles_bytes`: a division per candidate is measurable.
    pub(super) per_context: f32,
    /// Inverse of `batch_doubles_tokens`.
    pub(super) per_batch: f32,
    /// Mean over the prefills of the bytes that other gateways have waiting.
    pub(super) others_waiting_bytes: f32,
    /// Number of later requests that a unit of prefill work delays.
    pub(super) pressure: f32,
    /// The prefill cache that other gateways would choose for this prompt if all were idle.
    pub(super) rendezvous: Option<u64>,
}

impl Estimator<'_> {
    pub(super) fn prefill(&self, candidate: &Candidate) -> PrefillTerms {
        let rates = &candidate.rates;
        let prompt = self.demand.prompt_bytes as f32;
        let cached_bytes = self.cached_bytes(candidate.cache(), prompt);
        let work_bytes = self.work_bytes(prompt - cached_bytes, cached_bytes);
        let prefill_ms = work_bytes * rates.prefill_us_per_byte * MS_PER_US;
        let (load, _) = self.fallback.prefill.or_measured(candidate.load.as_ref());
        PrefillTerms {
            wait_ms: self.wait_ms(candidate),
            prefill_ms,
            affinity_bonus_ms: prefill_ms * self.affinity(candidate),
            tx_bytes_per_ms: available(load.tx_free_bytes_per_ms, load.tx_kv_bytes_per_ms),
            cached_bytes,
            work_bytes,
        }
    }

    /// Time behind earlier prompts, this gateway's and others': a lower bound of the cost.
    #[inline]
    pub(super) fn wait_ms(&self, candidate: &Candidate) -> f32 {
        let rates = &candidate.rates;
        let (load, penalty_ms) = self.fallback.prefill.or_measured(candidate.load.as_ref());
        let others = self.others_waiting_now(load, rates) * rates.uncached_share;
        let backlog_bytes = candidate.usage.prompt_bytes as f32 + others;
        let QueueHead { work_bytes, busy_ms } = candidate.queue_head;
        let backlog_ms = backlog_bytes * rates.prefill_us_per_byte * MS_PER_US;
        let head_ms = work_bytes * rates.prefill_us_per_byte * MS_PER_US;
        (backlog_ms - busy_ms.min(head_ms * MAX_DONE)).max(0.0) + penalty_ms
    }

    /// Waiting bytes of other gateways, moved from the measured value towards the pool's mean as
    /// the measurement ages relative to the time in which the queue drains.
    #[inline]
    fn others_waiting_now(&self, load: &Load, rates: &EngineRates) -> f32 {
        let (measured, mean) = (load.others_waiting_bytes, self.others_waiting_bytes);
        let drains_ms = measured.max(mean) * rates.prefill_us_per_byte * MS_PER_US;
        let kept = (drains_ms + 0.01) / (drains_ms + load.age_ms + 0.01);
        mean + (measured - mean) * kept
    }

    #[inline]
    pub(super) fn decode(&self, candidate: &Candidate) -> DecodeTerms {
        let rates = &candidate.rates;
        let fallback = &self.fallback.decode;
        let (load, penalty_ms) = fallback.or_measured(candidate.load.as_ref());
        let streams = candidate.usage.requests as f32 + load.others_requests;
        let batch = candidate.usage.kv_tokens as f32 + load.others_requests * rates.request_tokens;
        // Rates follow the step time that the kernel measured. The model adds the requests that
        // have been sent and do not show in that measurement yet.
        let now_ms = rates.step_us * MS_PER_US * (1.0 + batch * self.per_batch);
        let more_ms = rates.step_us * MS_PER_US * self.demand.kv_tokens as f32 * self.per_batch;
        DecodeTerms {
            itl_ms: now_ms + more_ms,
            admission_ms: self.admission_steps(candidate, streams, batch) * now_ms,
            batch_cost_ms: streams * more_ms * rates.output_tokens + penalty_ms,
            rx_bytes_per_ms: available(load.rx_free_bytes_per_ms, load.rx_kv_bytes_per_ms),
        }
    }

    /// Decode steps until there is capacity, if streams end evenly over the duration of an answer
    /// and each frees its share of the KV tokens.
    fn admission_steps(&self, candidate: &Candidate, streams: f32, batch: f32) -> f32 {
        let WorkerLimits { requests, kv_tokens } = candidate.limits;
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

    /// Share of the prefill that another gateway may have caused to be cached here.
    fn affinity(&self, candidate: &Candidate) -> f32 {
        match candidate.load {
            _ if self.rendezvous != Some(candidate.cache()) => 0.0,
            Some(load) if !load.is_stale() => RENDEZVOUS_SHARE,
            _ => BLIND_RENDEZVOUS_SHARE,
        }
    }

    fn cached_bytes(&self, cache: u64, prompt: f32) -> f32 {
        (self.demand.prefix_match.bytes_of(cache) as f32).min(prompt)
    }

    /// Uncached bytes, weighted by the attention over everything before them.
    fn work_bytes(&self, uncached: f32, cached: f32) -> f32 {
        uncached * (1.0 + (cached + uncached * 0.5) * self.per_context)
    }
}

/// Bandwidth for one more transfer on a link with `free` bandwidth, of which `kv` is in use.
fn available(free: f32, kv: f32) -> f32 {
    if free > 0.0 { (free - kv).max(free * FAIR_SHARE) } else { f32::INFINITY }
}
