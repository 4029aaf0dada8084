//! Reported: the worker whose engine told the least load when it was last asked.
//!
//! What was sent since then is not known, as in gateways that poll metrics.

use super::input::{Candidate, Draw};
use super::walk;

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    let tokens = |at: usize| candidates[at].reported.map_or(0, |reported| reported.tokens);
    walk(candidates, draw).min_by_key(|&at| tokens(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{ReportedLoad, Usage};

    #[test]
    fn the_engine_that_told_least_is_taken() {
        let told = |tokens| {
            let reported = Some(ReportedLoad::excluding(1, tokens, Usage::default()));
            Candidate { reported, ..Candidate::default() }
        };
        let all = [told(9), told(3), told(7)];
        assert_eq!(pick(&all, Draw { chance: u64::MAX / 3, turn: 0 }), 1);
    }
}
