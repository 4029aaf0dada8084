//! Least load: the worker with the lowest sum of leased prompt bytes and weighted requests.

use super::candidate::Candidate;
use super::draw::Draw;

/// Weight of one request in prompt bytes: scheduling and decoding a request costs about as much as
/// prefilling this many bytes (256 tokens of four bytes).
const BYTES_PER_REQUEST: u64 = 1024;

fn load(candidate: &Candidate) -> u64 {
    let usage = candidate.usage;
    usage.prompt_bytes.saturating_add(usage.requests.saturating_mul(BYTES_PER_REQUEST))
}

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    draw.positions(candidates.len()).min_by_key(|&at| load(&candidates[at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Usage;

    #[test]
    fn one_long_prompt_weighs_more_than_several_short_ones() {
        let long = Usage { requests: 1, prompt_bytes: 400_000, kv_tokens: 0, ..Usage::default() };
        let short = Usage { requests: 6, prompt_bytes: 6_000, kv_tokens: 0, ..Usage::default() };
        let both = [
            Candidate { usage: long, ..Candidate::default() },
            Candidate { id: 1, usage: short, ..Candidate::default() },
        ];
        for chance in [0, u64::MAX / 2, u64::MAX] {
            assert_eq!(pick(&both, Draw { chance, turn: 0 }), 1);
        }
    }
}
