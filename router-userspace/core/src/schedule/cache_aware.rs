//! Cache-aware, as sglang-router does it: the prefill that has seen the most of the prompt,
//! unless the counts of requests are far apart. Its thresholds are that router's defaults.

use super::input::{Candidate, Draw};
use super::prefix_match::PrefixMatch;
use super::walk;

/// A match of less than this part of the prompt is none.
const CACHE_THRESHOLD: f64 = 0.3;
/// Requests are out of balance where the fullest has this many more than the emptiest, and
const BALANCE_ABSOLUTE: u64 = 64;
/// this many times as many.
const BALANCE_RELATIVE: f64 = 1.5;

pub(super) fn pick(
    candidates: &[Candidate],
    prefix_match: &PrefixMatch,
    prompt_bytes: u64,
    draw: Draw,
) -> usize {
    let requests = |at: usize| candidates[at].usage.requests;
    let fewest = walk(candidates, draw).min_by_key(|&at| requests(at)).unwrap_or(0);
    let most = candidates.iter().map(|candidate| candidate.usage.requests).max().unwrap_or(0);
    let least = requests(fewest);
    let unbalanced =
        most - least > BALANCE_ABSOLUTE && most as f64 > least as f64 * BALANCE_RELATIVE;
    if unbalanced {
        return fewest;
    }
    let bytes = |at: usize| prefix_match.bytes_of(candidates[at].cache());
    let best = walk(candidates, draw).max_by_key(|&at| bytes(at)).unwrap_or(fewest);
    if bytes(best) as f64 > prompt_bytes as f64 * CACHE_THRESHOLD {
        return best;
    }
    // Else the one whose cache is thought to be the emptiest.
    walk(candidates, draw).min_by_key(|&at| candidates[at].cached_blocks).unwrap_or(fewest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Usage;

    fn candidate(worker: u64, requests: u64, cached_blocks: u32) -> Candidate {
        let usage = Usage { requests, ..Usage::default() };
        Candidate { worker, usage, cached_blocks, ..Candidate::default() }
    }

    const DRAW: Draw = Draw { chance: 5, turn: 0 };

    #[test]
    fn a_match_wins_until_the_load_is_out_of_balance() {
        let mut prefix_match = PrefixMatch::default();
        prefix_match.note(2, 10);
        let mut all = [candidate(1, 0, 0), candidate(2, 60, 500)];
        assert_eq!(pick(&all, &prefix_match, 40_000, DRAW), 1);
        assert_eq!(pick(&all, &prefix_match, 400_000, DRAW), 0, "a small match is none");
        all[1].usage.requests = 65;
        assert_eq!(pick(&all, &prefix_match, 40_000, DRAW), 0);
    }
}
