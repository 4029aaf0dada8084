//! [`Estimate`]: the predicted milliseconds of a request on a pair.
//!
//! Prefill is a queue with a learned service rate. The KV cache follows chunk by chunk while
//! prefill computes. The decode step grows with the KV tokens that it reads. Agents' measurements
//! are used while they are fresh; otherwise the pool's median and a penalty replace them.

use serde::Serialize;

use super::candidate::Candidate;
use super::demand::Demand;
use super::fallback_load::FallbackLoad;
use super::tuning::Tuning;
use crate::fleet::{EngineRates, Link, QueueHead, WorkerLimits};
use crate::pair::Pair;

/// Engines send KV cache after each chunk of prefill, so where prefill is slower than the link only
/// the last chunk's transfer adds latency. 8,192 tokens is SGLang's usual chunk.
const CHUNK_BYTES: f32 = 32_768.0;
const MS_PER_US: f32 = 1e-3;

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
    /// Cost of a worker of unknown load.
    pub(super) penalty_ms: f32,
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
    pub(super) tuning: &'a Tuning,
    /// Share of the streams that are other gateways'. An earlier turn went through them as often.
    pub(super) others_share: f32,
    /// The prefill cache that other gateways would choose for this prompt if all were idle.
    pub(super) owner: Option<u64>,
}

impl Estimator<'_> {
    pub(super) fn prefill(&self, candidate: &Candidate) -> PrefillTerms {
        let rates = &candidate.rates;
        let prompt = self.demand.prompt_bytes as f32;
        let cached_bytes = self.cached_bytes(candidate.cache(), prompt);
        let work_bytes = self.work_bytes(prompt - cached_bytes, cached_bytes);
        let prefill_ms = work_bytes * rates.prefill_us_per_byte * MS_PER_US;
        // What others may have had cached is the start of the prompt; the rest has more before it.
        let hoped = cached_bytes + (prompt - cached_bytes) * self.affinity(candidate);
        let hoped_bytes = self.work_bytes(prompt - hoped, hoped);
        let (load, _) = self.fallback.prefill.or_measured(candidate.load.as_ref());
        PrefillTerms {
            wait_ms: self.wait_ms(candidate),
            prefill_ms,
            affinity_bonus_ms: prefill_ms - hoped_bytes * rates.prefill_us_per_byte * MS_PER_US,
            tx_bytes_per_ms: free(load.tx_free_bytes_per_ms),
            cached_bytes,
            work_bytes,
        }
    }

    /// Time behind earlier prompts, this gateway's and others': a lower bound of the cost.
    #[inline]
    pub(super) fn wait_ms(&self, candidate: &Candidate) -> f32 {
        let rates = &candidate.rates;
        let (load, penalty_ms) = self.fallback.prefill.or_measured(candidate.load.as_ref());
        let others = load.others_waiting_bytes;
        let backlog_bytes = candidate.usage.prompt_bytes as f32 + others;
        let QueueHead { work_bytes, busy_ms } = candidate.queue_head;
        let backlog_ms = backlog_bytes * rates.prefill_us_per_byte * MS_PER_US;
        let head_ms = work_bytes * rates.prefill_us_per_byte * MS_PER_US;
        (backlog_ms - busy_ms.min(head_ms * self.tuning.max_done)).max(0.0) + penalty_ms
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
            penalty_ms,
            rx_bytes_per_ms: free(load.rx_free_bytes_per_ms),
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
        let bytes_per_ms = self.bandwidth(p.tx_bytes_per_ms.min(d.rx_bytes_per_ms), link);
        let prompt = self.demand.prompt_bytes as f32;
        let ms_per_byte = rates.kv_bytes_per_byte / bytes_per_ms.max(1.0);
        let last_chunk_ms = prompt.min(CHUNK_BYTES) * ms_per_byte;
        let behind_ms = prompt * ms_per_byte - p.prefill_ms;
        Estimate {
            wait_ms: p.wait_ms,
            admission_ms: (d.admission_ms - p.wait_ms).max(0.0),
            prefill_ms: p.prefill_ms,
            affinity_bonus_ms: p.affinity_bonus_ms * (1.0 + self.tuning.queue_cost),
            queue_cost_ms: p.prefill_ms * self.tuning.queue_cost,
            transfer_ms: behind_ms.max(last_chunk_ms) + link.rtt_us / 1000.0,
            itl_ms: d.itl_ms,
            output_tokens: rates.output_tokens,
            cached_bytes: p.cached_bytes,
            work_bytes: p.work_bytes,
        }
    }

    /// Share of the prefill that another gateway may have caused to be cached here.
    fn affinity(&self, candidate: &Candidate) -> f32 {
        match candidate.load {
            _ if self.owner != Some(candidate.cache()) => 0.0,
            Some(load) if !load.is_stale() => self.tuning.affinity.min(self.others_share),
            _ => self.tuning.blind_affinity,
        }
    }

    /// Bandwidth of a transfer that both NICs leave `free`. KV cache of other requests is not
    /// subtracted: it has been sent by the time this prompt is computed. A link that was measured
    /// beside other transfers is not slow.
    fn bandwidth(&self, free: f32, link: Link) -> f32 {
        if link.bytes_per_ms < free * self.tuning.fair_share || free.is_infinite() {
            free.min(link.bytes_per_ms)
        } else {
            free
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

/// Bandwidth that other traffic leaves; 0 is unknown.
fn free(bytes_per_ms: f32) -> f32 {
    if bytes_per_ms > 0.0 { bytes_per_ms } else { f32::INFINITY }
}
