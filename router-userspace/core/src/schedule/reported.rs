//! Reported: the worker whose engine last reported the lowest load.
//!
//! Requests sent since that report are not counted, as in gateways that poll metrics.

use super::candidate::Candidate;
use super::draw::Draw;

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    let tokens = |at: usize| candidates[at].reported.map_or(0, |reported| reported.tokens);
    draw.positions(candidates.len()).min_by_key(|&at| tokens(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{PolledLoad, Usage};

    #[test]
    fn the_engine_with_the_lowest_report_is_chosen() {
        let reporting = |tokens| {
            let reported = Some(PolledLoad::excluding(1, tokens, Usage::default()));
            Candidate { reported, ..Candidate::default() }
        };
        let all = [reporting(9), reporting(3), reporting(7)];
        assert_eq!(pick(&all, Draw { chance: u64::MAX / 3, turn: 0 }), 1);
    }
}
