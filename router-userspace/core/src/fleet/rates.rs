//! [`EngineRates`]: the speed of engines and the size of their requests, estimated from measurements.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::adaptive_ewma::{AdaptiveEwma, Prior};
use super::relative_speed::{RelativeSpeed, SpeedSpread, SpeedTuning, significant};

/// Weight of the prior in bytes of prompt work: one or two requests.
const WORK_PRIOR_BYTES: f32 = 64e3;
/// Maximum weight of the past beside new evidence, in bytes of prompt work.
const WORK_MEMORY_BYTES: f32 = 1e6;
/// Weight of the prior of quantities that are counted per request, in requests.
const REQUEST_PRIOR: f32 = 4.0;
/// Maximum weight of the past of quantities that are counted per request, in requests.
const REQUEST_MEMORY: f32 = 200.0;
/// A prefill time is clamped to this factor of the predicted time, up or down.
const MAX_SURPRISE: f32 = 3.0;
/// Natural logarithm of 1.5: the tolerance of a pool's consensus about its step.
const MAX_STEP_SCATTER: f32 = 0.405;
/// Maximum weight of the past of the scatter of steps, in steps.
const SCATTER_MEMORY: f32 = 1000.0;
/// Maximum weight of past decode steps. It is small so that the estimate follows the engine quickly.
const STEP_MEMORY: f32 = 16.0;
/// A pool's maximum weight of the past relative to one worker's. With it the initial assumptions count
/// little in a pool; otherwise a worker without data would look different from the others.
const POOL_MEMORY: f32 = 16.0;

/// Current estimates: the evidence mixed with the priors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EngineRates {
    /// Prefill time of one uncached byte at the start of a prompt.
    pub prefill_us_per_byte: f32,
    /// Decode step of an engine that decodes one short request.
    pub step_us: f32,
    /// Bytes of KV cache per byte of prompt.
    pub kv_bytes_per_byte: f32,
    /// Tokens of a response.
    pub output_tokens: f32,
    /// KV tokens of a request, as the gateway estimates them.
    pub request_tokens: f32,
    /// How far the prefill times of the pool's workers spread.
    #[serde(skip)]
    pub prefill_spread: SpeedSpread,
    /// Variance of the logarithm of a decode step beside the pool's.
    #[serde(skip)]
    pub step_variance: f32,
}

/// A prompt that a prefill has computed.
#[derive(Clone, Copy, Debug)]
pub struct PrefillSample {
    /// Work of the prompt and of those before it in the queue.
    pub work_bytes: f32,
    /// Time that they took.
    pub ms: f32,
    /// Time that was predicted, at the worker's rate.
    pub predicted_ms: f32,
    /// The pool's rate at that time.
    pub usual_us_per_byte: f32,
    pub sent_ms: u64,
    pub now_ms: u64,
}

/// The estimators behind [`EngineRates`], of one worker or of a whole pool.
#[derive(Debug, Default)]
pub struct RateEstimators {
    is_pool: bool,
    relative: RelativeSpeed,
    tuning: SpeedTuning,
    prefill: AdaptiveEwma,
    step: AdaptiveEwma,
    step_scatter: AdaptiveEwma,
    kv_bytes: AdaptiveEwma,
    output: AdaptiveEwma,
    request: AdaptiveEwma,
}

impl RateEstimators {
    /// Creates the estimators of a pool, over all its workers.
    pub fn of_pool() -> RateEstimators {
        RateEstimators { is_pool: true, ..RateEstimators::default() }
    }

    /// Creates the estimators of a worker with other parameters of the significance test.
    pub fn with_tuning(tuning: SpeedTuning) -> RateEstimators {
        RateEstimators { relative: RelativeSpeed::new(tuning), tuning, ..RateEstimators::default() }
    }

    fn memory(&self, of_one: f32) -> f32 {
        if self.is_pool { of_one * POOL_MEMORY } else { of_one }
    }

    /// Records a prompt that this worker computed, for it and for its `pool`. The time is clamped, since
    /// one that took many times as long waited for something other than prefill.
    pub fn on_prefill(&self, pool: &RateEstimators, sample: PrefillSample) {
        let PrefillSample { work_bytes, ms, predicted_ms, usual_us_per_byte, sent_ms, now_ms } =
            sample;
        let ms = ms.min(predicted_ms * MAX_SURPRISE).max(predicted_ms / MAX_SURPRISE);
        let usual_us = work_bytes * usual_us_per_byte;
        self.relative.observe(&pool.relative, (ms * 1000.0 / usual_us).ln(), sent_ms, now_ms);
        for estimators in [self, pool] {
            estimators.prefill.observe_steady(
                ms * 1000.0,
                work_bytes,
                estimators.memory(WORK_MEMORY_BYTES),
                now_ms,
            );
        }
    }

    /// Records a decode step of a worker, converted to the `step_us` of an idle engine.
    pub fn on_decode_step(&self, step_us: f32, now_ms: u64) {
        self.step.observe_volatile(step_us, 1.0, STEP_MEMORY, now_ms);
    }

    /// Records a decode step of one of a pool's engines. The estimate follows the majority of them.
    pub fn on_pool_decode_step(&self, step_us: f32, now_ms: u64) {
        if let Some(usual_us) = self.step.mean() {
            // A step beyond the tolerance of the consensus says nothing about usual engines.
            let off = (step_us / usual_us).ln().clamp(-MAX_STEP_SCATTER, MAX_STEP_SCATTER);
            self.step_scatter.observe_steady(off * off + 1e-9, 1.0, SCATTER_MEMORY, now_ms);
        }
        self.step.observe_consensus(step_us, 1.0, self.memory(STEP_MEMORY), now_ms);
    }

    /// Records that the KV cache of `prompt_bytes` had `kv_bytes`.
    pub fn on_kv_transfer(&self, prompt_bytes: f32, kv_bytes: f32, now_ms: u64) {
        self.kv_bytes.observe_steady(
            kv_bytes,
            prompt_bytes,
            self.memory(WORK_MEMORY_BYTES),
            now_ms,
        );
    }

    /// Records a response of `tokens`.
    pub fn on_response(&self, tokens: f32, now_ms: u64) {
        self.output.observe_steady(tokens, 1.0, REQUEST_MEMORY, now_ms);
    }

    /// Records a request of `kv_tokens` that was sent.
    pub fn on_request(&self, kv_tokens: f32, now_ms: u64) {
        self.request.observe_steady(kv_tokens, 1.0, REQUEST_MEMORY, now_ms);
    }

    /// Returns [`EngineRates::request_tokens`] alone.
    pub fn request_tokens(&self, prior: &EngineRates, now_ms: u64) -> f32 {
        let prior = Prior { value: prior.request_tokens, weight: REQUEST_PRIOR };
        self.request.value(prior, now_ms)
    }

    /// Returns the current estimates. A worker's prior are its pool's rates, a pool's prior are the
    /// initial assumptions. A worker departs from its pool's speed by significant evidence only.
    pub fn rates(&self, prior: &EngineRates, now_ms: u64) -> EngineRates {
        let mix = |estimator: &AdaptiveEwma, value, weight| {
            estimator.value(Prior { value, weight }, now_ms)
        };
        let step_us = mix(&self.step, prior.step_us, 1.0);
        let (prefill_us_per_byte, step_us) = if self.is_pool {
            (mix(&self.prefill, prior.prefill_us_per_byte, WORK_PRIOR_BYTES), step_us)
        } else {
            let off = (step_us / prior.step_us).ln();
            let off = significant(off, prior.step_variance, self.tuning.critical_value);
            let times = self.relative.factor(prior.prefill_spread, now_ms);
            (prior.prefill_us_per_byte * times, prior.step_us * off.exp())
        };
        EngineRates {
            prefill_us_per_byte,
            step_us,
            kv_bytes_per_byte: mix(&self.kv_bytes, prior.kv_bytes_per_byte, WORK_PRIOR_BYTES),
            output_tokens: mix(&self.output, prior.output_tokens, REQUEST_PRIOR),
            request_tokens: self.request_tokens(prior, now_ms),
            prefill_spread: if self.is_pool {
                self.relative.spread()
            } else {
                prior.prefill_spread
            },
            step_variance: if self.is_pool {
                mix(&self.step_scatter, MAX_STEP_SCATTER * MAX_STEP_SCATTER, 1.0)
            } else {
                prior.step_variance
            },
        }
    }
}

impl Serialize for RateEstimators {
    /// Writes the evidence without priors: a rate without measurements is `null`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("RateEstimators", 6)?;
        fields.serialize_field("prefill_us_per_byte", &self.prefill.mean())?;
        fields.serialize_field("step_us", &self.step.mean())?;
        fields.serialize_field("kv_bytes_per_byte", &self.kv_bytes.mean())?;
        fields.serialize_field("output_tokens", &self.output.mean())?;
        fields.serialize_field("request_tokens", &self.request.mean())?;
        fields.serialize_field("relative_time", &self.relative)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_its_pool_s_rates_until_its_own_differ_significantly() {
        let prior = EngineRates { prefill_us_per_byte: 40.0, ..EngineRates::default() };
        let pool = RateEstimators::of_pool();
        let workers: Vec<RateEstimators> = (0..8).map(|_| RateEstimators::default()).collect();
        let mut now_ms = 0;
        let mut of_pool = pool.rates(&prior, 0);
        for round in 0..40 {
            for (at, worker) in workers.iter().enumerate() {
                let noise = if (round + at) % 2 == 0 { 0.8 } else { 1.2 };
                let slow = if at == 7 { 3.0 } else { 1.0 };
                let (work_bytes, ms) = (50e3, 1000.0 * noise * slow);
                let (sent_ms, now_ms) = (now_ms, now_ms + ms as u64);
                let usual_us_per_byte = of_pool.prefill_us_per_byte;
                let predicted_ms = ms;
                let sample = PrefillSample {
                    work_bytes,
                    ms,
                    predicted_ms,
                    usual_us_per_byte,
                    sent_ms,
                    now_ms,
                };
                worker.on_prefill(&pool, sample);
                of_pool = pool.rates(&prior, now_ms);
            }
            now_ms += 4000;
        }
        let rate = |worker: &RateEstimators| worker.rates(&of_pool, now_ms).prefill_us_per_byte;
        assert!(rate(&workers[7]) > 2.5 * rate(&workers[0]), "{}", rate(&workers[7]));
        let healthy = rate(&workers[0]) / rate(&workers[1]);
        assert!((0.8..1.25).contains(&healthy), "{healthy}");
        assert_eq!(rate(&RateEstimators::default()), of_pool.prefill_us_per_byte);
    }

    #[test]
    fn one_slow_worker_does_not_change_the_pool_s_step() {
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
    fn a_worker_without_data_has_the_pool_s_rate_and_not_the_assumption() {
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
