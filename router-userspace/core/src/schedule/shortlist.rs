//! [`Shortlist`]: the best few of many candidates, found in one pass and kept on the stack.

use super::candidate::Candidate;
use super::draw::Draw;

/// Positions of the best candidates, best first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortlist {
    entries: [(f32, u32); Shortlist::MAX],
    len: usize,
}

impl Shortlist {
    /// Maximum number of candidates of each leg that are combined into pairs.
    pub(super) const MAX: usize = 8;

    /// Scans from a random position, so that equal candidates are equally likely to be listed.
    ///
    /// `cost_ms(candidate, bar)` may stop early and return any value `>= bar`: such a candidate is
    /// not listed.
    pub(super) fn of(
        candidates: &[Candidate],
        draw: Draw,
        cost_ms: impl Fn(&Candidate, f32) -> f32,
    ) -> Shortlist {
        let mut list = Shortlist { entries: [(f32::INFINITY, 0); Shortlist::MAX], len: 0 };
        let start = draw.below(candidates.len());
        let (head, tail) = candidates.split_at(start);
        for (at, candidate) in tail.iter().enumerate() {
            list.offer(cost_ms(candidate, list.bar()), start + at);
        }
        for (at, candidate) in head.iter().enumerate() {
            list.offer(cost_ms(candidate, list.bar()), at);
        }
        list
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries[..self.len].iter().map(|(_, at)| *at as usize)
    }

    /// Cost at or above which a candidate is not listed.
    fn bar(&self) -> f32 {
        if self.len == Shortlist::MAX { self.entries[Shortlist::MAX - 1].0 } else { f32::INFINITY }
    }

    fn offer(&mut self, cost_ms: f32, at: usize) {
        // NaN is the worst cost, but the candidate stays eligible.
        let cost_ms = if cost_ms.is_nan() { f32::INFINITY } else { cost_ms };
        if self.len == Shortlist::MAX && cost_ms >= self.entries[Shortlist::MAX - 1].0 {
            return;
        }
        self.len = (self.len + 1).min(Shortlist::MAX);
        let mut hole = self.len - 1;
        while hole > 0 && self.entries[hole - 1].0 > cost_ms {
            self.entries[hole] = self.entries[hole - 1];
            hole -= 1;
        }
        self.entries[hole] = (cost_ms, at as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_best_are_listed_in_order(
            costs in proptest::collection::vec(0u32..1000, 1..60),
            chance in proptest::num::u64::ANY,
        ) {
            let all: Vec<Candidate> =
                (0..costs.len()).map(|id| Candidate { id, ..Candidate::default() }).collect();
            let cost = |c: &Candidate, _bar: f32| costs[c.id] as f32;
            let list = Shortlist::of(&all, Draw { chance, turn: 0 }, cost);
            let listed: Vec<u32> = list.iter().map(|at| costs[at]).collect();
            let mut sorted = costs.clone();
            sorted.sort_unstable();
            sorted.truncate(Shortlist::MAX);
            proptest::prop_assert_eq!(listed, sorted);
        }
    }
}
