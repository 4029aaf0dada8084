//! [`Perturbation`]: how far the modelled fleet differs from what the policies assume.

use std::str::FromStr;

use crate::engine_model::EngineModel;

/// The differences. The default is that of every comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perturbation {
    /// Each initial assumption of a gateway is this many times too large or too small.
    pub assumptions: f64,
    /// Log-normal deviation of a request's bytes per token.
    pub bytes: f64,
    /// Log-normal deviation of the bytes per token of a conversation, besides.
    pub conversation: f64,
    /// Log-normal noise of the waiting bytes that agents measure.
    pub agents: f64,
    /// Fixed time of each prompt at prefill, in milliseconds.
    pub fixed_ms: f64,
    /// A decode step at full KV capacity is longer by this share, quadratically less below.
    pub decode: f64,
    /// Log-normal deviation of the engines' speeds.
    pub engines: f64,
}

impl Default for Perturbation {
    fn default() -> Perturbation {
        Perturbation {
            assumptions: 2.0,
            bytes: 0.15,
            conversation: 0.0,
            agents: 0.0,
            fixed_ms: 0.0,
            decode: 0.0,
            engines: 0.0,
        }
    }
}

impl Perturbation {
    /// The perturbations of a comparison.
    pub const ALL: [&'static str; 10] = [
        "assumptions:5",
        "assumptions:10",
        "bytes:0.5",
        "conversation:0.5",
        "conversation:0.8",
        "agents:0.7",
        "fixed:50",
        "fixed:200",
        "decode:1",
        "engines:0.3",
    ];

    pub(crate) fn of_engine(&self, engine: &EngineModel) -> EngineModel {
        let (prefill_fixed_ms, step_quadratic) = (self.fixed_ms, self.decode);
        EngineModel { prefill_fixed_ms, step_quadratic, ..*engine }
    }
}

impl FromStr for Perturbation {
    type Err = String;

    /// Reads one difference, as `NAME:VALUE`.
    fn from_str(text: &str) -> Result<Perturbation, String> {
        let bad = || {
            format!(
                "`{text}` is none of assumptions:TIMES, bytes:SIGMA, conversation:SIGMA, \
                 agents:SIGMA, fixed:MS, decode:SHARE, engines:SIGMA (0 to 1000)"
            )
        };
        let (name, value) = text.split_once(':').ok_or_else(bad)?;
        let value: f64 = value.parse().map_err(|_| bad())?;
        let mut one = Perturbation::default();
        *match name {
            "assumptions" if value >= 1.0 => &mut one.assumptions,
            "bytes" => &mut one.bytes,
            "conversation" => &mut one.conversation,
            "agents" => &mut one.agents,
            "fixed" => &mut one.fixed_ms,
            "decode" => &mut one.decode,
            "engines" => &mut one.engines,
            _ => return Err(bad()),
        } = value;
        let most = if name == "fixed" || name == "assumptions" { 1000.0 } else { 3.0 };
        if (0.0..=most).contains(&value) { Ok(one) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perturbations_parse_and_an_error_lists_the_syntax() {
        for text in Perturbation::ALL {
            assert_ne!(text.parse(), Ok(Perturbation::default()), "{text}");
        }
        for wrong in
            ["", "bytes", "bytes:x", "bytes:-1", "decode:9", "assumptions:0.5", "fixed:NaN"]
        {
            let error = wrong.parse::<Perturbation>().unwrap_err();
            assert!(error.contains("assumptions:TIMES"), "{wrong}: {error}");
        }
    }
}
