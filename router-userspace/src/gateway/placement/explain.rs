//! [`Choice`]: why a pair was taken: its predicted milliseconds beside the next best pair's.

use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderValue;
use router_core::pair::Pair;
use router_core::schedule::Estimate;
use serde::Serialize;

/// Of a worker's name, so many bytes stand in a header: its end tells pods apart.
const MOST_NAME: usize = 80;

/// A choice that was predicted, with names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Choice {
    pub(crate) taken: Weighed,
    pub(crate) runner_up: Option<Weighed>,
    /// Taken to learn how it does, though the runner-up looked better.
    pub(crate) explored: bool,
}

/// A pair and what it was thought to cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Weighed {
    pub(crate) pair: Pair<Arc<str>>,
    pub(crate) estimate: Estimate,
}

impl Choice {
    /// Both pairs and their terms in milliseconds, in less than 800 bytes.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut text = self.taken.text();
        if self.explored {
            text.push_str(" explored");
        }
        if let Some(runner_up) = &self.runner_up {
            text.push_str("; not ");
            text.push_str(&runner_up.text());
        }
        HeaderValue::from_str(&text).ok()
    }
}

impl Weighed {
    fn text(&self) -> String {
        let Estimate {
            wait_ms,
            admission_ms,
            prefill_ms,
            transfer_ms,
            itl_ms,
            batch_cost_ms,
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
            ("batch_cost", batch_cost_ms),
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
    let mut at = name.len().saturating_sub(MOST_NAME);
    while !name.is_char_boundary(at) {
        at += 1;
    }
    &name[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighed(name: &str, ms: f32) -> Weighed {
        let estimate = Estimate {
            wait_ms: ms,
            admission_ms: ms,
            prefill_ms: ms,
            affinity_bonus_ms: -ms,
            queue_cost_ms: f32::NAN,
            transfer_ms: f32::INFINITY,
            itl_ms: ms,
            batch_cost_ms: ms,
            ..Estimate::default()
        };
        Weighed { pair: Pair { prefill: name.into(), decode: name.into() }, estimate }
    }

    #[test]
    fn a_header_names_both_pairs_and_stays_small_whatever_the_numbers() {
        let small = weighed("default/p", 1.25);
        let choice = Choice { taken: small.clone(), runner_up: Some(small), explored: false };
        let text = choice.header().unwrap();
        let text = text.to_str().unwrap();
        assert!(text.starts_with("default/p default/p ttft="), "{text}");
        assert!(text.contains(" wait=1.2 ") && text.contains("; not default/p "), "{text}");
        let long = weighed(&"n".repeat(400), f32::MAX);
        let choice = Choice { taken: long.clone(), runner_up: Some(long), explored: true };
        assert!(choice.header().unwrap().len() < 800);
    }
}
