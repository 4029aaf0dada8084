//! [`CandidateSet`]: the candidates of one choice; of a large pool, a random sample.
//!
//! Collecting a candidate costs more than scoring it, and a choice runs under a lock. Of a pool with
//! more than [`FULL_SCAN_LIMIT`] workers only a random sample is examined: the best of `d` is, on
//! average, among the best `1 / (d + 1)` of all, and queues stay about as short as with a full scan
//! (Mitzenmacher 2001; Vvedenskaya et al. 1996). Workers with a prefix match are always in the
//! sample. Different samples also keep gateways from choosing the same worker at the same time.

use super::candidate::Candidate;
use super::draw::Draw;

/// Number of candidates that are collected from a large pool.
pub const SAMPLE_SIZE: usize = 64;
/// Maximum size of a pool whose workers are all examined.
pub const FULL_SCAN_LIMIT: usize = 2 * SAMPLE_SIZE;

/// Maximum number of workers with a prefix match that are examined before all others.
const MAX_FIRST: usize = 17;

/// An iterator over the positions `0..len`, each once, in order or in a random order.
#[derive(Clone, Debug)]
pub struct SampleOrder {
    at: usize,
    step: usize,
    len: usize,
    left: usize,
    sample_size: usize,
    /// Positions that come before all others.
    first: [usize; MAX_FIRST],
    first_len: usize,
    first_next: usize,
}

impl SampleOrder {
    /// Returns all positions in ascending order, for pools with groups and for policies of which a
    /// sample is not enough.
    pub fn all(len: usize) -> SampleOrder {
        SampleOrder {
            at: 0,
            step: 1,
            len,
            left: len,
            sample_size: usize::MAX,
            first: [0; MAX_FIRST],
            first_len: 0,
            first_next: 0,
        }
    }

    /// Returns `first`, then the other positions from a random start in steps of a random size. Up to
    /// [`FULL_SCAN_LIMIT`] positions come in ascending order.
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
                order.first[order.first_len] = at;
                order.first_len += 1;
            }
        }
        let mut step = 1 + draw.second().below(len - 1);
        // A step that is coprime to the length visits every position.
        while divisor(step, len) != 1 {
            step -= 1;
        }
        SampleOrder {
            at: draw.below(len),
            step,
            sample_size: SAMPLE_SIZE + order.first_len,
            ..order
        }
    }

    /// Number of candidates after which a search may stop.
    pub fn sample_size(&self) -> usize {
        self.sample_size
    }

    fn is_first(&self, at: usize) -> bool {
        self.first[..self.first_len].contains(&at)
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
        if self.first_next < self.first_len {
            self.first_next += 1;
            return Some(self.first[self.first_next - 1]);
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

/// Collects the candidates of the best health tier. Unhealthy workers are used only where no
/// healthier worker is ready; a healthy worker without capacity is not replaced by them.
#[derive(Debug)]
pub struct CandidateSet<'a> {
    all: &'a mut Vec<Candidate>,
    sample_size: usize,
    best: Option<u8>,
}

impl<'a> CandidateSet<'a> {
    /// Clears `all` and collects into it, so that its memory is reused.
    pub fn new(all: &'a mut Vec<Candidate>, sample_size: usize) -> CandidateSet<'a> {
        all.clear();
        CandidateSet { all, sample_size, best: None }
    }

    /// Reports a ready worker of health `tier` (0 is the best) and returns whether workers of that
    /// tier are collected.
    pub fn accepts(&mut self, tier: u8) -> bool {
        if self.best.is_none_or(|best| tier < best) {
            self.all.clear();
            self.best = Some(tier);
        }
        self.best == Some(tier)
    }

    /// Adds a worker that [`CandidateSet::accepts`] approved and that has capacity.
    pub fn push(&mut self, candidate: Candidate) {
        self.all.push(candidate);
    }

    /// Whether enough candidates of the best tier are collected, so that the search can stop.
    pub fn is_complete(&self) -> bool {
        self.best == Some(0) && self.all.len() >= self.sample_size
    }

    /// Whether any worker was ready, with or without capacity.
    pub fn any_ready(&self) -> bool {
        self.best.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(tiers: &[(u8, bool)], sample_size: usize) -> (Vec<usize>, bool) {
        let mut all = vec![Candidate::default()];
        let mut set = CandidateSet::new(&mut all, sample_size);
        for (id, &(tier, has_capacity)) in tiers.iter().enumerate() {
            if set.is_complete() {
                break;
            }
            if set.accepts(tier) && has_capacity {
                set.push(Candidate { id, ..Candidate::default() });
            }
        }
        let any_ready = set.any_ready();
        (all.iter().map(|candidate| candidate.id).collect(), any_ready)
    }

    #[test]
    fn the_best_health_wins_in_any_order_even_without_capacity() {
        assert_eq!(collected(&[(2, true), (0, true), (2, true), (0, true)], 9), (vec![1, 3], true));
        assert_eq!(
            collected(&[(2, true), (0, false)], 9),
            (vec![], true),
            "a full healthy worker is not replaced"
        );
        assert_eq!(collected(&[(4, true), (3, true), (3, true)], 1), (vec![1, 2], true));
        assert_eq!(collected(&[], 9), (vec![], false));
    }

    #[test]
    fn only_enough_of_the_best_tier_ends_the_search() {
        assert_eq!(collected(&[(0, true), (0, true), (0, true)], 2), (vec![0, 1], true));
        assert_eq!(collected(&[(1, true), (1, true), (0, true)], 2), (vec![2], true));
    }

    proptest::proptest! {
        #[test]
        fn an_order_visits_each_position_once_and_first_ones_first(
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
    fn every_position_is_equally_likely_to_be_sampled() {
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
