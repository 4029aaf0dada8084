//! [`ChoiceExplanation`]: why a pair was chosen: its predicted milliseconds beside the next best
//! pair's. It is the `x-pd-router-choice` header and `last_choice` of `/fleet`.

use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderValue;
use router_core::fleet::Worker;
use router_core::pair::Pair;
use router_core::schedule::{Chosen, Estimate};
use serde::Serialize;

/// Bytes of a worker's name in the header: the end of the name, which differs between pods.
const MAX_NAME: usize = 80;

/// A choice of a policy that predicts, with the names of the workers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ChoiceExplanation {
    pub(crate) chosen: ScoredPair,
    pub(crate) runner_up: Option<ScoredPair>,
}

/// A pair and its estimated cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ScoredPair {
    pub(crate) pair: Pair<Arc<str>>,
    pub(crate) estimate: Estimate,
}

impl ChoiceExplanation {
    /// Explains `chosen`; `worker_of` maps a candidate's id to its worker. `None` if the policy does
    /// not predict.
    pub(crate) fn new<'w>(
        chosen: &Chosen,
        worker_of: impl Fn(usize) -> &'w Arc<Worker>,
    ) -> Option<ChoiceExplanation> {
        let named = |(pair, estimate): (Pair<usize>, Estimate)| {
            let pair = pair.map(|id| Arc::clone(&worker_of(id).name));
            ScoredPair { pair, estimate }
        };
        Some(ChoiceExplanation {
            chosen: named((chosen.pair, chosen.estimate?)),
            runner_up: chosen.runner_up.map(named),
        })
    }

    /// Both pairs and their terms in milliseconds, in less than 800 bytes.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut text = self.chosen.text();
        if let Some(runner_up) = &self.runner_up {
            text.push_str("; not ");
            text.push_str(&runner_up.text());
        }
        HeaderValue::from_str(&text).ok()
    }
}

impl ScoredPair {
    fn text(&self) -> String {
        let Estimate {
            wait_ms,
            admission_ms,
            prefill_ms,
            transfer_ms,
            itl_ms,
            queue_cost_ms,
            affinity_bonus_ms,
            ..
        } = self.estimate;
        let mut text = format!("{} {}", end_of(&self.pair.prefill), end_of(&self.pair.decode));
        let terms = [
            ("ttft", self.estimate.ttft_ms()),
            ("wait", wait_ms),
            ("admission", admission_ms),
            ("prefill", prefill_ms),
            ("transfer", transfer_ms),
            ("itl", itl_ms),
            ("queue_cost", queue_cost_ms),
            ("affinity_bonus", affinity_bonus_ms),
        ];
        for (name, ms) in terms {
            // Writing to a String cannot fail. A number of any size takes eleven bytes.
            let _ = write!(text, " {name}={:.1}", ms.clamp(-1e8, 1e8));
        }
        text
    }
}

fn end_of(name: &str) -> &str {
    let mut at = name.len().saturating_sub(MAX_NAME);
    while !name.is_char_boundary(at) {
        at += 1;
    }
    &name[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(name: &str, ms: f32) -> ScoredPair {
        let estimate = Estimate {
            wait_ms: ms,
            admission_ms: ms,
            prefill_ms: ms,
            affinity_bonus_ms: -ms,
            queue_cost_ms: f32::NAN,
            transfer_ms: f32::INFINITY,
            itl_ms: ms,
            ..Estimate::default()
        };
        ScoredPair { pair: Pair { prefill: name.into(), decode: name.into() }, estimate }
    }

    #[test]
    fn the_header_names_both_pairs_and_stays_below_800_bytes() {
        let small = scored("default/p", 1.25);
        let choice = ChoiceExplanation { chosen: small.clone(), runner_up: Some(small) };
        let text = choice.header().unwrap();
        let text = text.to_str().unwrap();
        assert!(text.starts_with("default/p default/p ttft="), "{text}");
        assert!(text.contains(" wait=1.2 ") && text.contains("; not default/p "), "{text}");
        let long = scored(&"n".repeat(400), f32::MAX);
        let choice = ChoiceExplanation { chosen: long.clone(), runner_up: Some(long) };
        assert!(choice.header().unwrap().len() < 800);
    }
}
