//! [`Engine`]: how fast the modelled engines are. Sources: docs/understand/simulate.md.

use crate::trace::Trace;

/// One model on one kind of node; prefill and decode nodes are alike.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Engine {
    /// Prefill of a token that nothing stands before.
    pub prefill_us_per_token: f64,
    /// Attention: what each token before it adds.
    pub prefill_us_per_context_token: f64,
    /// An iteration of prefill takes at least this: the weights are read once.
    pub prefill_floor_ms: f64,
    /// Tokens of one iteration of prefill, of one prompt or several.
    pub chunk_tokens: u32,
    /// Tokens that a prefill's prefix cache holds, in its own memory and the host's.
    pub prefix_cache_tokens: u32,
    pub kv_bytes_per_token: f64,
    /// A decode step: weights, each stream, each token of KV cache in the batch.
    pub step_ms: f64,
    pub step_us_per_stream: f64,
    pub step_us_per_kv_token: f64,
    /// KV tokens that a decode has room for.
    pub kv_tokens: u64,
    /// Room that a decode keeps for an answer when it admits a request.
    pub reserved_tokens: u64,
    pub max_running: usize,
    pub nic_bytes_per_ms: f64,
}

impl Engine {
    /// Qwen3-32B in BF16 on two H100 SXM, 100 Gbit/s each node.
    pub const QWEN3_32B: Engine = Engine {
        prefill_us_per_token: 73.7,
        prefill_us_per_context_token: 0.00236,
        prefill_floor_ms: 14.0,
        chunk_tokens: 8192,
        prefix_cache_tokens: 858_000,
        kv_bytes_per_token: 262_144.0,
        step_ms: 14.0,
        step_us_per_stream: 30.0,
        step_us_per_kv_token: 0.056,
        kv_tokens: 286_000,
        reserved_tokens: 512,
        max_running: 256,
        nic_bytes_per_ms: 12.5e6,
    };

    /// Computing `tokens` that `context` tokens stand before.
    pub fn prefill_ms(&self, tokens: f64, context: f64) -> f64 {
        let attention = self.prefill_us_per_context_token * (context + tokens / 2.0);
        tokens * (self.prefill_us_per_token + attention) / 1000.0
    }

    pub fn step_ms(&self, streams: usize, kv_tokens: f64) -> f64 {
        let streams_us = self.step_us_per_stream * streams as f64;
        self.step_ms + (streams_us + self.step_us_per_kv_token * kv_tokens) / 1000.0
    }

    /// Requests a millisecond that a fleet serves of this trace if nothing is ever cached: what
    /// load 1.0 means. The leg that is full first decides.
    pub fn capacity_per_ms(&self, trace: &Trace, prefills: usize, decodes: usize) -> f64 {
        let work_ms = trace.mean(|a| self.prefill_ms(f64::from(a.input_tokens), 0.0));
        let tokens = trace.mean(|a| f64::from(a.input_tokens + a.output_tokens / 2));
        let room = trace.mean(|a| f64::from(a.input_tokens) + self.reserved_tokens as f64);
        let streams = (self.kv_tokens as f64 / room).min(self.max_running as f64);
        let outputs = trace.mean(|a| f64::from(a.output_tokens));
        let stay_ms = outputs * self.step_ms(streams as usize, streams * tokens);
        (prefills as f64 / work_ms).min(decodes as f64 * streams / stay_ms)
    }
}
