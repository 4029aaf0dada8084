//! Power of two choices: of two random workers, the one with fewer requests.

use super::candidate::Candidate;
use super::draw::Draw;

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    let one = draw.below(candidates.len());
    if candidates.len() == 1 {
        return one;
    }
    // Any of the others: a step of 1..len from the first.
    let step = 1 + draw.second().below(candidates.len() - 1);
    let other = (one + step) % candidates.len();
    if candidates[other].usage.requests < candidates[one].usage.requests { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Usage;

    #[test]
    fn the_fuller_of_two_is_never_chosen() {
        let usage = Usage { requests: 5, ..Usage::default() };
        let both = [
            Candidate { usage, ..Candidate::default() },
            Candidate { id: 1, ..Candidate::default() },
        ];
        for turn in 0..100u64 {
            let draw = Draw { chance: turn.wrapping_mul(0x9e37_79b9_7f4a_7c15), turn };
            assert_eq!(pick(&both, draw), 1);
        }
    }
}
