//! [`EngineModel`]: the speed of the modelled engines. Sources: docs/understand/simulate.md.

use crate::trace::Trace;

/// One model on one kind of node; prefill and decode nodes are alike.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct EngineModel {
    /// Prefill time of a token without context.
    pub prefill_us_per_token: f64,
    /// Additional prefill time per token of context (attention).
    pub prefill_us_per_context_token: f64,
    /// Minimum duration of a prefill iteration: the weights are read once.
    pub prefill_floor_ms: f64,
    /// Fixed time of each prompt.
    pub prefill_fixed_ms: f64,
    /// Maximum tokens of one prefill iteration, of one or several prompts.
    pub chunk_tokens: u32,
    /// Capacity of a prefill's prefix cache in tokens, in device and host memory.
    pub prefix_cache_tokens: u32,
    pub kv_bytes_per_token: f64,
    /// Duration of a decode step of an empty batch.
    pub step_ms: f64,
    /// Additional step time per stream.
    pub step_us_per_stream: f64,
    /// Additional step time per KV token in the batch.
    pub step_us_per_kv_token: f64,
    /// Additional share of the step of an empty batch at full KV capacity; quadratic in the batch.
    pub step_quadratic: f64,
    /// Capacity of a decode in KV tokens.
    pub kv_tokens: u64,
    /// KV tokens that a decode reserves for a response when it admits a request.
    pub reserved_tokens: u64,
    pub max_running: usize,
    pub nic_bytes_per_ms: f64,
}

impl EngineModel {
    /// Qwen3-32B in BF16 on two H100 SXM, 100 Gbit/s each node.
    pub const QWEN3_32B: EngineModel = EngineModel {
        prefill_us_per_token: 73.7,
        prefill_us_per_context_token: 0.00236,
        prefill_floor_ms: 14.0,
        prefill_fixed_ms: 0.0,
        chunk_tokens: 8192,
        prefix_cache_tokens: 858_000,
        kv_bytes_per_token: 262_144.0,
        step_ms: 14.0,
        step_us_per_stream: 30.0,
        step_us_per_kv_token: 0.056,
        step_quadratic: 0.0,
        kv_tokens: 286_000,
        reserved_tokens: 512,
        max_running: 256,
        nic_bytes_per_ms: 12.5e6,
    };

    /// Returns the time to compute `tokens` after `context` tokens.
    pub fn prefill_ms(&self, tokens: f64, context: f64) -> f64 {
        let attention = self.prefill_us_per_context_token * (context + tokens / 2.0);
        tokens * (self.prefill_us_per_token + attention) / 1000.0
    }

    /// Returns the duration of a decode step.
    pub fn step_ms(&self, streams: usize, kv_tokens: f64) -> f64 {
        let streams_us = self.step_us_per_stream * streams as f64;
        let share = kv_tokens / self.kv_tokens as f64;
        self.step_ms * (1.0 + self.step_quadratic * share * share)
            + (streams_us + self.step_us_per_kv_token * kv_tokens) / 1000.0
    }

    /// Returns the requests per millisecond of this trace that a fleet serves without any caching. This
    /// is load 1.0. The leg that saturates first limits it.
    pub fn capacity_per_ms(&self, trace: &Trace, prefills: usize, decodes: usize) -> f64 {
        let work_ms = trace.mean(|a| self.prefill_ms(f64::from(a.input_tokens), 0.0));
        let tokens = trace.mean(|a| f64::from(a.input_tokens + a.output_tokens / 2));
        let kv_capacity = trace.mean(|a| f64::from(a.input_tokens) + self.reserved_tokens as f64);
        let streams = (self.kv_tokens as f64 / kv_capacity).min(self.max_running as f64);
        let outputs = trace.mean(|a| f64::from(a.output_tokens));
        let stay_ms = outputs * self.step_ms(streams as usize, streams * tokens);
        (prefills as f64 / work_ms).min(decodes as f64 * streams / stay_ms)
    }
}
