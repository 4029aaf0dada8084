//! [`AdaptiveEwma`]: a moving average of a measured rate whose evidence decays with time.
//!
//! Mean, weight, number of confirmations and time of the last observation share one atomic word, so
//! that a reader never sees a partial update. Time is an argument, in milliseconds of the caller's
//! clock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Time in which evidence loses half of its weight if nothing renews it. A volatile quantity reaches
/// this half-life only after [`MAX_CONFIRMATIONS`].
pub const HALF_LIFE_MS: u64 = 10_000;
/// Half-life of the first observation of a volatile quantity.
pub const FRESH_HALF_LIFE_MS: u64 = 100;
/// Maximum number of confirmations that are counted. With these the half-life is [`HALF_LIFE_MS`].
const MAX_CONFIRMATIONS: u8 = 27;
/// An observation that agrees confirms the estimate only after this many half-lives.
const CONFIRM_AFTER_HALF_LIVES: u32 = 2;
/// Evidence of this many half-lives counts for nothing. Without this limit the remainder of heavy
/// evidence would keep a worker that was very slow apart from the others for as long again.
const EXPIRE_AFTER_HALF_LIVES: u32 = 8;
/// A volatile quantity that differs by more than this factor, up or down, has changed its state.
const VOLATILE_TOLERANCE: f32 = 2.0;
/// A sample that differs by more than this factor from the consensus of many does not belong to it.
/// It is closer than [`VOLATILE_TOLERANCE`] to exclude one slow worker from its pool's consensus.
const CONSENSUS_TOLERANCE: f32 = 1.5;

// The parts of the word. No sign is kept: means and weights are positive.
const TICK_BITS: u32 = 22;
const CONFIRMATION_BITS: u32 = 5;
const WEIGHT_BITS: u32 = 15;
const MEAN_BITS: u32 = 22;
const _: () = assert!(TICK_BITS + CONFIRMATION_BITS + WEIGHT_BITS + MEAN_BITS == u64::BITS);
/// Ticks of the time of the last evidence: 16 ms, wrapping after 18 hours.
const TICK_SHIFT: u32 = 4;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;

/// A ratio of two measured sums, for example microseconds per byte.
#[derive(Debug, Default)]
pub struct AdaptiveEwma(AtomicU64);

/// The value that is assumed before any measurement, and its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    pub value: f32,
    /// In the unit of the evidence, for example bytes where the rate is microseconds per byte.
    pub weight: f32,
}

#[derive(Clone, Copy)]
struct Evidence {
    mean: f32,
    weight: f32,
    /// Number of confirmations, which determines the half-life.
    confirmations: u8,
    tick: u32,
}

/// A new measurement, and the maximum weight of the past beside it.
#[derive(Clone, Copy)]
struct Observation {
    amount: f32,
    per: f32,
    memory: f32,
    tick: u32,
}

impl Evidence {
    fn unpack(word: u64) -> Evidence {
        let part = |shift: u32, bits: u32| (word >> shift) as u32 & ((1 << bits) - 1);
        Evidence {
            mean: widen(part(TICK_BITS + CONFIRMATION_BITS + WEIGHT_BITS, MEAN_BITS), MEAN_BITS),
            weight: widen(part(TICK_BITS + CONFIRMATION_BITS, WEIGHT_BITS), WEIGHT_BITS),
            confirmations: part(TICK_BITS, CONFIRMATION_BITS) as u8,
            tick: part(0, TICK_BITS),
        }
    }

    /// Returns `None` if a number is too large for the word.
    fn pack(self) -> Option<u64> {
        let mean = u64::from(narrow(self.mean, MEAN_BITS)?);
        let weight = u64::from(narrow(self.weight, WEIGHT_BITS)?);
        let above =
            (((mean << WEIGHT_BITS) | weight) << CONFIRMATION_BITS) | u64::from(self.confirmations);
        Some((above << TICK_BITS) | u64::from(self.tick))
    }

    fn age_ms(self, tick: u32) -> u32 {
        (tick.wrapping_sub(self.tick) & TICK_MASK) << TICK_SHIFT
    }

    fn weight_at(self, tick: u32) -> f32 {
        let (age_ms, half_life_ms) = (self.age_ms(tick), half_life_ms(self.confirmations));
        let is_expired = age_ms as f32 >= half_life_ms * EXPIRE_AFTER_HALF_LIVES as f32;
        if is_expired { 0.0 } else { self.weight * decay(age_ms, half_life_ms) }
    }

    /// Update rule for steady quantities: the weighted mean of both.
    fn steady(self, new: Observation) -> Evidence {
        self.with(new, self.weight_at(new.tick), MAX_CONFIRMATIONS)
    }

    /// Update rule for volatile quantities: an agreeing observation restores the full weight; after
    /// a disagreeing one the past counts only as far as [`FRESH_HALF_LIFE_MS`] leaves it.
    fn volatile(self, new: Observation) -> Evidence {
        let age_ms = self.age_ms(new.tick);
        if self.differs(new, VOLATILE_TOLERANCE) {
            return self.with(new, self.weight * decay(age_ms, FRESH_HALF_LIFE_MS as f32), 0);
        }
        let decayed =
            age_ms as f32 >= half_life_ms(self.confirmations) * CONFIRM_AFTER_HALF_LIVES as f32;
        self.with(new, self.weight, (self.confirmations + u8::from(decayed)).min(MAX_CONFIRMATIONS))
    }

    /// Update rule for a consensus: a disagreeing observation reduces the weight, and replaces the
    /// estimate once no weight is left.
    fn consensus(self, new: Observation) -> Evidence {
        let weight = self.weight_at(new.tick);
        match self.differs(new, CONSENSUS_TOLERANCE) {
            true if weight > new.per => {
                Evidence { weight: weight - new.per, tick: new.tick, ..self }
            }
            true => self.with(new, 0.0, MAX_CONFIRMATIONS),
            false => self.with(new, weight, MAX_CONFIRMATIONS),
        }
    }

    fn differs(self, new: Observation, factor: f32) -> bool {
        let seen = new.amount / new.per;
        seen > self.mean * factor || seen * factor < self.mean
    }

    /// The mean of the evidence with weight `kept` and a new observation.
    fn with(self, new: Observation, kept: f32, confirmations: u8) -> Evidence {
        let kept = kept.min(new.memory);
        let weight = kept + new.per;
        let mean = (self.mean * kept + new.amount) / weight;
        Evidence { mean, weight, confirmations, tick: new.tick }
    }
}

/// Returns the upper bits of a positive number, rounded, or `None` if that is infinite.
fn narrow(number: f32, bits: u32) -> Option<u32> {
    let shift = u32::BITS - 1 - bits;
    let upper = number.to_bits().checked_add(1 << (shift - 1))? >> shift;
    widen(upper, bits).is_finite().then_some(upper)
}

fn widen(upper: u32, bits: u32) -> f32 {
    f32::from_bits(upper << (u32::BITS - 1 - bits))
}

fn half_life_ms(confirmations: u8) -> f32 {
    // Four confirmations double it.
    (FRESH_HALF_LIFE_MS as f32 * (f32::from(confirmations) / 4.0).exp2()).min(HALF_LIFE_MS as f32)
}

fn decay(age_ms: u32, half_life_ms: f32) -> f32 {
    if age_ms == 0 { 1.0 } else { (-(age_ms as f32) / half_life_ms).exp2() }
}

fn tick_of(now_ms: u64) -> u32 {
    (now_ms >> TICK_SHIFT) as u32 & TICK_MASK
}

impl AdaptiveEwma {
    /// Adds an observation of `amount` per `per` units of a steady quantity. `memory`, in the same
    /// units, is the maximum weight of the past. Values that are not positive and finite are ignored.
    ///
    /// ```
    /// use router_core::fleet::{AdaptiveEwma, Prior};
    ///
    /// let us_per_byte = AdaptiveEwma::default();
    /// us_per_byte.observe_steady(20_000.0, 1_000.0, 100_000.0, 0);
    /// let prior = Prior { value: 10.0, weight: 1_000.0 };
    /// assert_eq!(us_per_byte.value(prior, 0), 15.0);
    /// ```
    pub fn observe_steady(&self, amount: f32, per: f32, memory: f32, now_ms: u64) {
        self.observe(amount, per, memory, now_ms, Evidence::steady);
    }

    /// Adds an observation of a volatile quantity: one whose source is avoided while it looks bad and
    /// therefore yields no observation of its recovery.
    ///
    /// Evidence decays with [`FRESH_HALF_LIFE_MS`] at first. Each time that it has decayed and is
    /// confirmed, the half-life grows by a fifth, up to [`HALF_LIFE_MS`]: a lasting problem is
    /// retried more and more rarely. An observation that disagrees replaces older evidence.
    ///
    /// For the arguments see [`AdaptiveEwma::observe_steady`].
    pub fn observe_volatile(&self, amount: f32, per: f32, memory: f32, now_ms: u64) {
        self.observe(amount, per, memory, now_ms, Evidence::volatile);
    }

    /// Adds an observation of a quantity of many workers, some of which may be slow for a while. The
    /// estimate follows the majority of the observations, within a factor of 1.5.
    ///
    /// For the arguments see [`AdaptiveEwma::observe_steady`].
    pub fn observe_consensus(&self, amount: f32, per: f32, memory: f32, now_ms: u64) {
        self.observe(amount, per, memory, now_ms, Evidence::consensus);
    }

    fn observe(
        &self,
        amount: f32,
        per: f32,
        memory: f32,
        now_ms: u64,
        beside: impl Fn(Evidence, Observation) -> Evidence,
    ) {
        let sound = |x: f32| x.is_finite() && x > 0.0;
        if !(sound(amount) && sound(per) && sound(memory)) {
            return;
        }
        let new = Observation { amount, per, memory, tick: tick_of(now_ms) };
        let next = |word| beside(Evidence::unpack(word), new).pack();
        // An overflow leaves the old evidence unchanged.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Returns the weighted mean of the evidence and the prior.
    pub fn value(&self, prior: Prior, now_ms: u64) -> f32 {
        let evidence = Evidence::unpack(self.0.load(Ordering::Relaxed));
        if evidence.weight == 0.0 {
            return prior.value;
        }
        let weight = evidence.weight_at(tick_of(now_ms));
        (evidence.mean * weight + prior.value * prior.weight) / (weight + prior.weight)
    }

    /// Returns the mean of the evidence alone, as the admin API shows it; `None` without evidence.
    pub fn mean(&self) -> Option<f32> {
        let evidence = Evidence::unpack(self.0.load(Ordering::Relaxed));
        (evidence.weight > 0.0).then_some(evidence.mean)
    }

    /// Age of the last observation; meaningless without any. Used to choose a slot to evict.
    pub(super) fn age_ms(&self, now_ms: u64) -> u32 {
        Evidence::unpack(self.0.load(Ordering::Relaxed)).age_ms(tick_of(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIOR: Prior = Prior { value: 10.0, weight: 1.0 };

    #[test]
    fn evidence_outweighs_the_prior_and_decays_back_to_it() {
        let rate = AdaptiveEwma::default();
        assert_eq!(rate.value(PRIOR, 0), 10.0);
        assert_eq!(rate.mean(), None);
        for _ in 0..100 {
            rate.observe_steady(50.0, 1.0, 100.0, 0);
        }
        assert!((rate.value(PRIOR, 0) - 50.0).abs() < 1.0, "{}", rate.value(PRIOR, 0));
        let mut last = rate.value(PRIOR, 0);
        for half_lives in 1..u64::from(EXPIRE_AFTER_HALF_LIVES) {
            let now = rate.value(PRIOR, half_lives * HALF_LIFE_MS);
            assert!(now < last);
            last = now;
        }
        assert!(last < 30.0, "{last}");
        assert_eq!(rate.value(PRIOR, u64::from(EXPIRE_AFTER_HALF_LIVES) * HALF_LIFE_MS), 10.0);
    }

    #[test]
    fn recent_observations_outweigh_old_ones() {
        let rate = AdaptiveEwma::default();
        for _ in 0..1000 {
            rate.observe_steady(5.0, 1.0, 10.0, 0);
        }
        for _ in 0..30 {
            rate.observe_steady(20.0, 1.0, 10.0, 0);
        }
        assert!(rate.value(PRIOR, 0) > 17.0, "{}", rate.value(PRIOR, 0));
    }

    /// Time until the rate is within 5 % of the prior, when the worker would be tried again.
    fn retried_after_ms(rate: &AdaptiveEwma, from_ms: u64) -> u64 {
        let retried =
            (from_ms..).step_by(16).find(|now| rate.value(PRIOR, *now) < PRIOR.value * 1.05);
        retried.unwrap() - from_ms
    }

    #[test]
    fn each_confirmation_of_a_bad_rate_lengthens_its_half_life() {
        let rate = AdaptiveEwma::default();
        for _ in 0..20 {
            rate.observe_volatile(60.0, 1.0, 16.0, 0);
        }
        let (mut now, mut before, mut trials) = (0, 0, 0);
        while now < 600_000 {
            let waits = retried_after_ms(&rate, now);
            assert!(waits >= before, "{waits} ms after {before} ms");
            assert!(waits <= 900 + now / 4, "avoided for {waits} ms after {now} ms");
            (now, before, trials) = (now + waits, waits, trials + 1);
            rate.observe_volatile(60.0, 1.0, 16.0, now);
            assert!(rate.value(PRIOR, now) > 50.0, "one observation restores the estimate");
        }
        assert!(trials < 35, "{trials} trials in ten minutes");
    }

    #[test]
    fn one_good_observation_resets_a_long_confirmed_bad_rate() {
        let rate = AdaptiveEwma::default();
        for second in 0..600 {
            rate.observe_volatile(60.0, 1.0, 16.0, second * 1000);
        }
        assert!(rate.value(PRIOR, 599_000) > 50.0);
        rate.observe_volatile(9.0, 1.0, 16.0, 601_000);
        assert!(rate.value(PRIOR, 601_000) < 10.0, "{}", rate.value(PRIOR, 601_000));
        // A steady quantity needs more than one observation to change.
        let steady = AdaptiveEwma::default();
        for second in 0..600 {
            steady.observe_steady(60.0, 1.0, 16.0, second * 1000);
        }
        steady.observe_steady(9.0, 1.0, 16.0, 601_000);
        assert!(steady.value(PRIOR, 601_000) > 40.0);
    }

    #[test]
    fn a_consensus_ignores_a_minority() {
        let usual = AdaptiveEwma::default();
        for _ in 0..50 {
            usual.observe_consensus(5.0, 1.0, 64.0, 0);
        }
        for _ in 0..40 {
            usual.observe_consensus(30.0, 1.0, 64.0, 0);
        }
        assert_eq!(usual.mean(), Some(5.0));
        // Once all observations agree on a new value, it replaces the consensus.
        for _ in 0..70 {
            usual.observe_consensus(30.0, 1.0, 64.0, 0);
        }
        assert_eq!(usual.mean(), Some(30.0));
    }

    #[test]
    fn invalid_numbers_are_ignored() {
        let rate = AdaptiveEwma::default();
        for wrong in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            rate.observe_steady(wrong, 1.0, 10.0, 0);
            rate.observe_steady(1.0, wrong, 10.0, 0);
        }
        rate.observe_steady(f32::MAX, f32::MIN_POSITIVE, 10.0, 0);
        assert_eq!(rate.mean(), None);
    }

    proptest::proptest! {
        #[test]
        fn a_value_stays_between_the_prior_and_the_observations(
            seen in proptest::collection::vec((0.1f32..1e6, 1.0f32..1e6, 0u64..60_000), 1..50),
        ) {
            let rate = AdaptiveEwma::default();
            let (mut low, mut high, mut now) = (10.0f32, 10.0f32, 0);
            for (ratio, per, later) in seen {
                now += later;
                rate.observe_steady(ratio * per, per, 1e5, now);
                (low, high) = (low.min(ratio), high.max(ratio));
                let value = rate.value(PRIOR, now);
                proptest::prop_assert!(value >= low * 0.999 && value <= high * 1.001);
            }
        }
    }
}
