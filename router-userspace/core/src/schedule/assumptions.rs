//! [`Assumptions`]: what an estimate starts from until an engine or a link has been measured.

use serde::Serialize;

use crate::fleet::{EngineRates, Link, LinkPrior, SpeedSpread};

/// Initial rates, and the shape parameters of the cost model, which are never learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assumptions {
    pub rates: EngineRates,
    #[serde(skip)]
    pub link: LinkPrior,
    /// Attention doubles the cost of a prompt byte that has this many bytes before it.
    pub context_doubles_bytes: f32,
    /// A batch with this many KV tokens makes a decode step twice as long as an empty batch.
    pub batch_doubles_tokens: f32,
}

impl Assumptions {
    /// A dense model of about 30 billion parameters on two H100: 14,000 prompt tokens a second,
    /// 256 KiB of KV cache a token, a 20 ms decode step, 100 Gbit/s.
    pub const USUAL: Assumptions = Assumptions {
        rates: EngineRates {
            prefill_us_per_byte: 18.0,
            step_us: 20_000.0,
            kv_bytes_per_byte: 65_536.0,
            output_tokens: 300.0,
            request_tokens: 8_000.0,
            prefill_spread: SpeedSpread { mean: 0.0, variance: 0.0 },
            step_variance: 0.0,
        },
        link: LinkPrior { link: Link { rtt_us: 100.0, bytes_per_ms: 12.5e6 }, weight_ms: 50.0 },
        context_doubles_bytes: 128e3,
        batch_doubles_tokens: 250e3,
    };
}

/// Converts a decode step measured over a batch of `batch_tokens` to the step of an idle engine.
pub fn step_us_of_idle(itl_us: f32, batch_tokens: f32, assumptions: &Assumptions) -> f32 {
    itl_us / (1.0 + batch_tokens / assumptions.batch_doubles_tokens)
}
