//! Cache-aware, as in sglang-router: the prefill whose cache holds most of the prompt, unless the
//! workers' request counts are out of balance. The thresholds are sglang-router's defaults.

use super::candidate::Candidate;
use super::draw::Draw;
use super::prefix_match::PrefixMatch;

/// Minimum share of the prompt that a match must cover.
const CACHE_THRESHOLD: f64 = 0.3;
/// Requests are out of balance if the maximum exceeds the minimum by more than this
const BALANCE_ABSOLUTE: u64 = 64;
/// and is more than this multiple of it.
const BALANCE_RELATIVE: f64 = 1.5;

pub(super) fn pick(
    candidates: &[Candidate],
    prefix_match: &PrefixMatch,
    prompt_bytes: u64,
    draw: Draw,
) -> usize {
    let requests = |at: usize| candidates[at].usage.requests;
    let fewest = draw.positions(candidates.len()).min_by_key(|&at| requests(at)).unwrap_or(0);
    let most = candidates.iter().map(|candidate| candidate.usage.requests).max().unwrap_or(0);
    let least = requests(fewest);
    let unbalanced =
        most - least > BALANCE_ABSOLUTE && most as f64 > least as f64 * BALANCE_RELATIVE;
    if unbalanced {
        return fewest;
    }
    let bytes = |at: usize| prefix_match.bytes_of(candidates[at].cache());
    let best = draw.positions(candidates.len()).max_by_key(|&at| bytes(at)).unwrap_or(fewest);
    if bytes(best) as f64 > prompt_bytes as f64 * CACHE_THRESHOLD {
        return best;
    }
    // Without a match, the worker with the emptiest cache.
    draw.positions(candidates.len())
        .min_by_key(|&at| candidates[at].cached_blocks)
        .unwrap_or(fewest)
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
        prefix_match.record(2, 10);
        let mut all = [candidate(1, 0, 0), candidate(2, 60, 500)];
        assert_eq!(pick(&all, &prefix_match, 40_000, DRAW), 1);
        assert_eq!(
            pick(&all, &prefix_match, 400_000, DRAW),
            0,
            "a match below the threshold does not count"
        );
        all[1].usage.requests = 65;
        assert_eq!(pick(&all, &prefix_match, 40_000, DRAW), 0);
    }
}
