//! Random: every worker with equal probability.

use super::candidate::Candidate;
use super::draw::Draw;

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    draw.below(candidates.len())
}
