//! [`EngineRates`]: how fast engines are, and what their requests are like, as far as it was measured.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::adaptive_ewma::{AdaptiveEwma, Prior};

/// Bytes of prompt work that weigh as much as the prior: a request or two.
const WORK_PRIOR_BYTES: f32 = 64e3;
/// How much of the past counts beside new evidence, in bytes of prompt work.
const WORK_MEMORY_BYTES: f32 = 1e6;
/// The same two for what is counted in requests.
const REQUEST_PRIOR: f32 = 4.0;
const REQUEST_MEMORY: f32 = 200.0;
/// Evidence of prefill counts for no more than so many times what was expected, either way.
const MOST_SURPRISE: f32 = 3.0;
/// A step time follows the engine faster than a mean of requests does.
const STEP_MEMORY: f32 = 16.0;
/// A pool remembers so many times what one worker does. What was assumed before weighs little beside
/// it then: else a worker of which nothing is known would look worse, or better, than the others.
const POOL_MEMORY: f32 = 16.0;

/// What is believed now, evidence and priors mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EngineRates {
    /// Prefill of one byte of prompt at the begin of a prompt, cached bytes not counted.
    pub prefill_us_per_byte: f32,
    /// One decode step of an engine that decodes a single short request.
    pub step_us: f32,
    /// KV cache that prefill sends for one byte of prompt.
    pub kv_bytes_per_byte: f32,
    /// Tokens of an answer.
    pub output_tokens: f32,
    /// KV tokens of a request, by the gateway's own estimate.
    pub request_tokens: f32,
    /// The part of a prompt that no prefix cache holds.
    pub uncached_share: f32,
}

/// The evidence for each of the [`EngineRates`], of one worker or of a whole pool.
#[derive(Debug, Default)]
pub struct RateEstimators {
    is_pool: bool,
    prefill: AdaptiveEwma,
    step: AdaptiveEwma,
    kv_bytes: AdaptiveEwma,
    output: AdaptiveEwma,
    request: AdaptiveEwma,
    uncached: AdaptiveEwma,
}

impl RateEstimators {
    /// That of a pool's workers together.
    pub fn of_pool() -> RateEstimators {
        RateEstimators { is_pool: true, ..RateEstimators::default() }
    }

    fn memory(&self, of_one: f32) -> f32 {
        if self.is_pool { of_one * POOL_MEMORY } else { of_one }
    }

    /// `work_bytes` of prompts, the ones that waited before it included, took `ms` where `usual`
    /// were expected. One that took many times as long waited for something else.
    pub fn on_prefill(&self, work_bytes: f32, ms: f32, usual_ms: f32, now_ms: u64) {
        let ms = ms.min(usual_ms * MOST_SURPRISE).max(usual_ms / MOST_SURPRISE);
        self.prefill.observe_steady(
            ms * 1000.0,
            work_bytes,
            self.memory(WORK_MEMORY_BYTES),
            now_ms,
        );
    }

    /// A decode step of a worker took as long as one of an idle engine that takes `step_us`.
    pub fn on_decode_step(&self, step_us: f32, now_ms: u64) {
        self.step.observe_volatile(step_us, 1.0, STEP_MEMORY, now_ms);
    }

    /// The same of a pool, whose engines differ: of what is usual there.
    pub fn on_pool_decode_step(&self, step_us: f32, now_ms: u64) {
        self.step.observe_consensus(step_us, 1.0, self.memory(STEP_MEMORY), now_ms);
    }

    /// The KV cache of `prompt_bytes` was `kv_bytes`.
    pub fn on_kv_transfer(&self, prompt_bytes: f32, kv_bytes: f32, now_ms: u64) {
        self.kv_bytes.observe_steady(
            kv_bytes,
            prompt_bytes,
            self.memory(WORK_MEMORY_BYTES),
            now_ms,
        );
    }

    /// An answer ended after `tokens`.
    pub fn on_response(&self, tokens: f32, now_ms: u64) {
        self.output.observe_steady(tokens, 1.0, REQUEST_MEMORY, now_ms);
    }

    /// A request of `kv_tokens` was sent, of whose `prompt_bytes` `uncached_bytes` are new.
    pub fn on_request(&self, kv_tokens: f32, prompt_bytes: f32, uncached_bytes: f32, now_ms: u64) {
        self.request.observe_steady(kv_tokens, 1.0, REQUEST_MEMORY, now_ms);
        self.uncached.observe_steady(uncached_bytes, prompt_bytes, WORK_MEMORY_BYTES, now_ms);
    }

    /// [`EngineRates::request_tokens`] alone.
    pub fn request_tokens(&self, prior: &EngineRates, now_ms: u64) -> f32 {
        let prior = Prior { value: prior.request_tokens, weight: REQUEST_PRIOR };
        self.request.value(prior, now_ms)
    }

    /// What is believed now. A worker's prior is its pool; a pool's prior is a setting.
    pub fn rates(&self, prior: &EngineRates, now_ms: u64) -> EngineRates {
        let mix =
            |learned: &AdaptiveEwma, value, weight| learned.value(Prior { value, weight }, now_ms);
        EngineRates {
            prefill_us_per_byte: mix(&self.prefill, prior.prefill_us_per_byte, WORK_PRIOR_BYTES),
            step_us: mix(&self.step, prior.step_us, 1.0),
            kv_bytes_per_byte: mix(&self.kv_bytes, prior.kv_bytes_per_byte, WORK_PRIOR_BYTES),
            output_tokens: mix(&self.output, prior.output_tokens, REQUEST_PRIOR),
            request_tokens: self.request_tokens(prior, now_ms),
            uncached_share: mix(&self.uncached, prior.uncached_share, WORK_PRIOR_BYTES),
        }
    }
}

impl Serialize for RateEstimators {
    /// The evidence alone: a rate of which nothing was measured is `null`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RateEstimators", 6)?;
        fields.serialize_field("prefill_us_per_byte", &self.prefill.mean())?;
        fields.serialize_field("step_us", &self.step.mean())?;
        fields.serialize_field("kv_bytes_per_byte", &self.kv_bytes.mean())?;
        fields.serialize_field("output_tokens", &self.output.mean())?;
        fields.serialize_field("request_tokens", &self.request.mean())?;
        fields.serialize_field("uncached_share", &self.uncached.mean())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_as_its_pool_until_it_shows_otherwise() {
        let prior = EngineRates { prefill_us_per_byte: 40.0, ..EngineRates::default() };
        let (pool, worker) = (RateEstimators::default(), RateEstimators::default());
        for _ in 0..50 {
            pool.on_prefill(50e3, 1000.0, 1000.0, 0);
        }
        let of_pool = pool.rates(&prior, 0);
        assert!((of_pool.prefill_us_per_byte - 20.0).abs() < 2.0, "{of_pool:?}");
        assert_eq!(worker.rates(&of_pool, 0), of_pool);
        for _ in 0..50 {
            worker.on_prefill(50e3, 4000.0, 4000.0, 0);
        }
        assert!(worker.rates(&of_pool, 0).prefill_us_per_byte > 70.0);
    }

    #[test]
    fn a_pool_is_not_held_for_slow_because_one_of_it_is() {
        let assumed = EngineRates { step_us: 20_000.0, ..EngineRates::default() };
        let pool = RateEstimators::of_pool();
        (0..300).for_each(|_| pool.on_pool_decode_step(5_000.0, 0));
        for _ in 0..100 {
            pool.on_pool_decode_step(30_000.0, 0);
            pool.on_pool_decode_step(5_000.0, 0);
        }
        let usual = pool.rates(&assumed, 0).step_us;
        assert!(usual < 5_000.0 * 1.02, "{usual} us");
    }

    #[test]
    fn a_worker_of_which_nothing_is_known_is_not_held_for_what_was_assumed() {
        let assumed = EngineRates { step_us: 20_000.0, ..EngineRates::default() };
        let (pool, worker) = (RateEstimators::of_pool(), RateEstimators::default());
        for _ in 0..500 {
            pool.on_pool_decode_step(5_000.0, 0);
            worker.on_decode_step(5_000.0, 0);
        }
        let unknown = RateEstimators::default().rates(&pool.rates(&assumed, 0), 0).step_us;
        let known = worker.rates(&pool.rates(&assumed, 0), 0).step_us;
        assert!(unknown < known * 1.02, "{unknown} us, and not {known}");
    }
}
