//! [`ChoiceInput`]: everything that a choice is made from, as plain data; [`Chosen`]: its result.

use serde::Serialize;

use super::assumptions::Assumptions;
use super::candidate::Candidate;
use super::demand::Demand;
use super::draw::Draw;
use super::estimate::Estimate;
use super::tuning::Tuning;
use crate::fleet::LinkTable;
use crate::pair::Pair;

/// What the choice optimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The weight of a millisecond of the whole decode relative to a millisecond of TTFT.
    pub decode_weight: f32,
    /// Where these are set, a pair within them is taken before any pair that misses one.
    pub targets: Option<SloTargets>,
}

impl Default for Objective {
    fn default() -> Objective {
        Objective { decode_weight: 1.0, targets: None }
    }
}

/// Service-level objectives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SloTargets {
    pub ttft_ms: f32,
    pub itl_ms: f32,
}

/// A request, its candidates, and what is known about them.
#[derive(Clone, Copy, Debug)]
pub struct ChoiceInput<'a> {
    pub demand: Demand,
    pub candidates: Pair<&'a [Candidate]>,
    /// Measured links by pair of workers; `None` without measurements.
    pub links: Option<&'a LinkTable>,
    pub assumptions: &'a Assumptions,
    pub objective: Objective,
    pub tuning: &'a Tuning,
    pub now_ms: u64,
    pub draw: Draw,
}

impl<'a> ChoiceInput<'a> {
    /// Returns an input of candidates alone, for policies that read nothing else.
    pub fn of(prefill: &'a [Candidate], decode: &'a [Candidate], draw: Draw) -> ChoiceInput<'a> {
        ChoiceInput {
            demand: Demand::default(),
            candidates: Pair { prefill, decode },
            links: None,
            assumptions: &Assumptions::USUAL,
            objective: Objective::default(),
            tuning: &Tuning::USUAL,
            now_ms: 0,
            draw,
        }
    }
}

/// The pair that serves the request, and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// By [`Candidate::id`].
    pub pair: Pair<usize>,
    /// Work of the prefill in bytes of uncached prompt, as its lease counts it; `None` for policies
    /// that count whole prompts.
    pub work_bytes: Option<f32>,
    /// Set by policies that predict.
    pub estimate: Option<Estimate>,
    /// The best pair that was not chosen.
    pub runner_up: Option<(Pair<usize>, Estimate)>,
}
