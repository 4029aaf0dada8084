//! Round robin: each worker in its turn.

use super::candidate::Candidate;
use super::draw::Draw;

pub(super) fn pick(candidates: &[Candidate], draw: Draw) -> usize {
    (draw.turn % candidates.len() as u64) as usize
}
