//! Random: every worker with the same chance.

use super::{Candidate, Draw};

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    draw.below(candidates.len())
}
