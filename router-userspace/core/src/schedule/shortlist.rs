//! [`Shortlist`]: the few best of many candidates, found in one walk and kept on the stack.

use super::input::{Candidate, Draw};

/// Positions of the best candidates, best first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortlist {
    places: [(f32, u32); Shortlist::MOST],
    len: usize,
}

impl Shortlist {
    /// So many of each leg are tried with each other.
    pub(super) const MOST: usize = 8;

    /// The walk begins at a random place, so that of equals each is as likely to be listed.
    /// `cost_ms` is told the cost from which on nothing is listed: it may return any that is not
    /// below it without reckoning to the end.
    pub(super) fn of(
        candidates: &[Candidate],
        draw: Draw,
        cost_ms: impl Fn(&Candidate, f32) -> f32,
    ) -> Shortlist {
        let mut list = Shortlist { places: [(f32::INFINITY, 0); Shortlist::MOST], len: 0 };
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
        self.places[..self.len].iter().map(|(_, at)| *at as usize)
    }

    /// What is not below this is not listed any more.
    fn bar(&self) -> f32 {
        if self.len == Shortlist::MOST { self.places[Shortlist::MOST - 1].0 } else { f32::INFINITY }
    }

    fn offer(&mut self, cost_ms: f32, at: usize) {
        // A cost that is no number is the worst there is, and still a candidate.
        let cost_ms = if cost_ms.is_nan() { f32::INFINITY } else { cost_ms };
        if self.len == Shortlist::MOST && cost_ms >= self.places[Shortlist::MOST - 1].0 {
            return;
        }
        self.len = (self.len + 1).min(Shortlist::MOST);
        let mut hole = self.len - 1;
        while hole > 0 && self.places[hole - 1].0 > cost_ms {
            self.places[hole] = self.places[hole - 1];
            hole -= 1;
        }
        self.places[hole] = (cost_ms, at as u32);
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
            sorted.truncate(Shortlist::MOST);
            proptest::prop_assert_eq!(listed, sorted);
        }
    }
}
