//! [`CandidateSet`]: the candidates of one choice, and of a large pool no more than enough of them.
//!
//! To look at a worker costs more than to reckon with it, and a choice is made under a lock. Of a
//! pool with more than a few hundred workers a random part is looked at: the best of `d` is, on
//! average, the best `1 / (d + 1)` of all, and queues are about as short as if all had been looked
//! at (Mitzenmacher 2001; Vvedenskaya et al. 1996). Whoever a prompt's prefix speaks for is always
//! among them. That several gateways look at different parts keeps them from herding, too.

use super::input::{Candidate, Draw};

/// So many candidates are enough where more could be had.
pub const SAMPLE_SIZE: usize = 64;
/// A pool is looked at whole up to this size.
pub const FULL_SCAN_LIMIT: usize = 2 * SAMPLE_SIZE;

/// Whoever the prefix of a prompt speaks for is looked at before all others; more are not.
const MAX_FIRST: usize = 17;

/// Positions `0..len`, each once: in order, or in one that chance gives.
#[derive(Clone, Debug)]
pub struct SampleOrder {
    at: usize,
    step: usize,
    len: usize,
    left: usize,
    enough: usize,
    first: [usize; MAX_FIRST],
    firsts: usize,
    told: usize,
}

impl SampleOrder {
    /// All of them, from the first to the last: for whoever goes by turns, or by groups.
    pub fn all(len: usize) -> SampleOrder {
        SampleOrder {
            at: 0,
            step: 1,
            len,
            left: len,
            enough: usize::MAX,
            first: [0; MAX_FIRST],
            firsts: 0,
            told: 0,
        }
    }

    /// Of a large pool enough: `first`, then from a random one on in random steps. The small pool
    /// is looked at whole.
    ///
    /// ```
    /// use router_core::schedule::{Draw, SampleOrder};
    ///
    /// let mut all: Vec<usize> = SampleOrder::of(1000, Draw { chance: 1 << 63, turn: 0 }, [7]).collect();
    /// assert_eq!(all[..2], [7, 500]);
    /// all.sort_unstable();
    /// assert_eq!(all, (0..1000).collect::<Vec<_>>());
    /// ```
    pub fn of(len: usize, draw: Draw, first: impl IntoIterator<Item = usize>) -> SampleOrder {
        let mut order = SampleOrder::all(len);
        if len <= FULL_SCAN_LIMIT {
            return order;
        }
        for at in first.into_iter().take(MAX_FIRST) {
            if at < len && !order.is_first(at) {
                order.first[order.firsts] = at;
                order.firsts += 1;
            }
        }
        let mut step = 1 + draw.second().below(len - 1);
        // A step that shares no divisor with the length comes by every position, as 1 does.
        while divisor(step, len) != 1 {
            step -= 1;
        }
        SampleOrder { at: draw.below(len), step, enough: SAMPLE_SIZE + order.firsts, ..order }
    }

    /// So many candidates are enough.
    pub fn sample_size(&self) -> usize {
        self.enough
    }

    fn is_first(&self, at: usize) -> bool {
        self.first[..self.firsts].contains(&at)
    }

    fn step(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let at = self.at;
        self.at += self.step;
        if self.at >= self.len {
            self.at -= self.len;
        }
        Some(at)
    }
}

impl Iterator for SampleOrder {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.told < self.firsts {
            self.told += 1;
            return Some(self.first[self.told - 1]);
        }
        loop {
            let at = self.step()?;
            if !self.is_first(at) {
                return Some(at);
            }
        }
    }
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// Takes candidates in one by one and keeps those of the best health that is to be had. Health
/// may be a last resort; capacity never is: the full ones are not replaced by unhealthy ones.
#[derive(Debug)]
pub struct CandidateSet<'a> {
    all: &'a mut Vec<Candidate>,
    enough: usize,
    best: Option<u8>,
}

impl<'a> CandidateSet<'a> {
    /// Into an emptied `all`, whose memory is used again.
    pub fn new(all: &'a mut Vec<Candidate>, enough: usize) -> CandidateSet<'a> {
        all.clear();
        CandidateSet { all, enough, best: None }
    }

    /// Somebody ready of this health, 0 is the best: is anybody of it wanted?
    pub fn accepts(&mut self, rank: u8) -> bool {
        if self.best.is_none_or(|best| rank < best) {
            self.all.clear();
            self.best = Some(rank);
        }
        self.best == Some(rank)
    }

    /// One that was wanted, and has room.
    pub fn push(&mut self, candidate: Candidate) {
        self.all.push(candidate);
    }

    /// Enough of the best health there is: nobody else has to be looked at.
    pub fn is_complete(&self) -> bool {
        self.best == Some(0) && self.all.len() >= self.enough
    }

    /// Somebody was ready, with room or not.
    pub fn any_ready(&self) -> bool {
        self.best.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(ranks: &[(u8, bool)], enough: usize) -> (Vec<usize>, bool) {
        let mut all = vec![Candidate::default()];
        let mut set = CandidateSet::new(&mut all, enough);
        for (id, &(rank, room)) in ranks.iter().enumerate() {
            if set.is_complete() {
                break;
            }
            if set.accepts(rank) && room {
                set.push(Candidate { id, ..Candidate::default() });
            }
        }
        let anybody = set.any_ready();
        (all.iter().map(|candidate| candidate.id).collect(), anybody)
    }

    #[test]
    fn the_best_health_wins_whatever_the_order_and_a_full_one_counts() {
        assert_eq!(gathered(&[(2, true), (0, true), (2, true), (0, true)], 9), (vec![1, 3], true));
        assert_eq!(gathered(&[(2, true), (0, false)], 9), (vec![], true), "full is no last resort");
        assert_eq!(gathered(&[(4, true), (3, true), (3, true)], 1), (vec![1, 2], true));
        assert_eq!(gathered(&[], 9), (vec![], false));
    }

    #[test]
    fn enough_of_the_best_ends_the_look_and_of_others_does_not() {
        assert_eq!(gathered(&[(0, true), (0, true), (0, true)], 2), (vec![0, 1], true));
        assert_eq!(gathered(&[(1, true), (1, true), (0, true)], 2), (vec![2], true));
    }

    proptest::proptest! {
        #[test]
        fn a_tour_comes_by_each_once_and_by_the_first_at_first(
            len in 0usize..3000,
            chance in proptest::num::u64::ANY,
            first in proptest::collection::vec(0usize..3000, 0..20),
        ) {
            let mut seen = vec![0; len];
            let order = SampleOrder::of(len, Draw { chance, turn: 0 }, first.iter().copied());
            for (turn, at) in order.enumerate() {
                seen[at] += 1;
                let named = first[..first.len().min(MAX_FIRST)].contains(&at);
                proptest::prop_assert!(len <= FULL_SCAN_LIMIT || !named || turn < first.len());
            }
            proptest::prop_assert!(seen.iter().all(|&times| times == 1));
        }
    }

    #[test]
    fn each_is_as_likely_to_be_among_the_first() {
        let mut seen = [0u32; 300];
        let mut draw = Draw { chance: 9, turn: 0 };
        for _ in 0..6000 {
            draw = draw.second();
            SampleOrder::of(300, draw, []).take(SAMPLE_SIZE).for_each(|at| seen[at] += 1);
        }
        // 1,280 on average, with a deviation of about 32.
        assert!(seen.iter().all(|times| (1120..1440).contains(times)), "{seen:?}");
    }
}
