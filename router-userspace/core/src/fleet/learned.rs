//! [`Learned`]: a rate that is learned from what is measured, and forgotten when nothing is.
//!
//! One word, so that a reader never sees half of a change: the mean, the weight of its evidence
//! and when the last of it came. Time is an argument, in milliseconds of the caller's clock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Evidence that nobody renews loses half of its weight in this time. A worker or a link that
/// is avoided for what was seen of it looks like any other again after a few of these.
pub const HALF_LIFE_MS: u64 = 10_000;

/// Ticks of the time of the last evidence: a quarter of a second, wrapping after 4.6 hours.
const TICK_SHIFT: u32 = 8;

/// A ratio of two measured sums, for example microseconds a byte.
#[derive(Debug, Default)]
pub struct Learned(AtomicU64);

/// What is believed before anything was measured, and how much evidence outweighs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    pub value: f32,
    /// In the unit of the evidence: bytes, where microseconds a byte are learned.
    pub weight: f32,
}

#[derive(Clone, Copy)]
struct Evidence {
    mean: f32,
    weight: f32,
    tick: u16,
}

impl Evidence {
    // The upper half of an f32 is a float of eight bits: enough for a weight.
    fn unpack(word: u64) -> Evidence {
        Evidence {
            mean: f32::from_bits((word >> 32) as u32),
            weight: f32::from_bits((word as u32) & 0xffff_0000),
            tick: word as u16,
        }
    }

    fn pack(self) -> u64 {
        let weight = self.weight.to_bits() & 0xffff_0000;
        (u64::from(self.mean.to_bits()) << 32) | u64::from(weight) | u64::from(self.tick)
    }

    fn weight_at(self, tick: u16) -> f32 {
        let age_ms = u32::from(tick.wrapping_sub(self.tick)) << TICK_SHIFT;
        if age_ms == 0 { self.weight } else { self.weight * fading(age_ms) }
    }
}

fn fading(age_ms: u32) -> f32 {
    (-(age_ms as f32) / HALF_LIFE_MS as f32).exp2()
}

fn tick_of(now_ms: u64) -> u16 {
    (now_ms >> TICK_SHIFT) as u16
}

impl Learned {
    /// Adds `amount` over `per` units. `memory`, in the same units, is how much of the past
    /// counts beside it. What is not positive and finite is no evidence.
    ///
    /// ```
    /// use router_core::fleet::{Learned, Prior};
    ///
    /// let us_per_byte = Learned::default();
    /// us_per_byte.observe(20_000.0, 1_000.0, 100_000.0, 0);
    /// let prior = Prior { value: 10.0, weight: 1_000.0 };
    /// assert_eq!(us_per_byte.value(prior, 0), 15.0);
    /// ```
    pub fn observe(&self, amount: f32, per: f32, memory: f32, now_ms: u64) {
        let sound = |x: f32| x.is_finite() && x > 0.0;
        if !(sound(amount) && sound(per) && sound(memory)) {
            return;
        }
        let tick = tick_of(now_ms);
        let next = |word| {
            let old = Evidence::unpack(word);
            let kept = old.weight_at(tick).min(memory);
            let weight = kept + per;
            let mean = (old.mean * kept + amount) / weight;
            (mean.is_finite() && weight.is_finite()).then(|| Evidence { mean, weight, tick }.pack())
        };
        // An overflow leaves the old evidence, which is the better one.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// The mean of the evidence and the prior, by weight.
    pub fn value(&self, prior: Prior, now_ms: u64) -> f32 {
        let evidence = Evidence::unpack(self.0.load(Ordering::Relaxed));
        if evidence.weight == 0.0 {
            return prior.value;
        }
        let weight = evidence.weight_at(tick_of(now_ms));
        (evidence.mean * weight + prior.value * prior.weight) / (weight + prior.weight)
    }

    /// The mean of the evidence alone, as `/fleet` shows it.
    pub fn mean(&self) -> Option<f32> {
        let evidence = Evidence::unpack(self.0.load(Ordering::Relaxed));
        (evidence.weight > 0.0).then_some(evidence.mean)
    }

    /// When the last evidence came, as far as it can be told: for the choice of what to forget.
    pub(super) fn age_ms(&self, now_ms: u64) -> u32 {
        let evidence = Evidence::unpack(self.0.load(Ordering::Relaxed));
        u32::from(tick_of(now_ms).wrapping_sub(evidence.tick)) << TICK_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIOR: Prior = Prior { value: 10.0, weight: 1.0 };

    #[test]
    fn evidence_outweighs_the_prior_and_fades_back_to_it() {
        let rate = Learned::default();
        assert_eq!(rate.value(PRIOR, 0), 10.0);
        assert_eq!(rate.mean(), None);
        for _ in 0..100 {
            rate.observe(50.0, 1.0, 100.0, 0);
        }
        assert!((rate.value(PRIOR, 0) - 50.0).abs() < 1.0, "{}", rate.value(PRIOR, 0));
        let mut last = rate.value(PRIOR, 0);
        for half_lives in 1..15 {
            let now = rate.value(PRIOR, half_lives * HALF_LIFE_MS);
            assert!(now < last);
            last = now;
        }
        assert!((last - 10.0).abs() < 0.5, "{last}");
    }

    #[test]
    fn the_recent_past_counts_for_more_than_the_distant_one() {
        let rate = Learned::default();
        for _ in 0..1000 {
            rate.observe(5.0, 1.0, 10.0, 0);
        }
        for _ in 0..30 {
            rate.observe(20.0, 1.0, 10.0, 0);
        }
        assert!(rate.value(PRIOR, 0) > 17.0, "{}", rate.value(PRIOR, 0));
    }

    #[test]
    fn nonsense_is_no_evidence() {
        let rate = Learned::default();
        for wrong in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            rate.observe(wrong, 1.0, 10.0, 0);
            rate.observe(1.0, wrong, 10.0, 0);
        }
        rate.observe(f32::MAX, f32::MIN_POSITIVE, 10.0, 0);
        assert_eq!(rate.mean(), None);
    }

    proptest::proptest! {
        #[test]
        fn a_value_stays_between_the_prior_and_what_was_seen(
            seen in proptest::collection::vec((0.1f32..1e6, 1.0f32..1e6, 0u64..60_000), 1..50),
        ) {
            let rate = Learned::default();
            let (mut low, mut high, mut now) = (10.0f32, 10.0f32, 0);
            for (ratio, per, later) in seen {
                now += later;
                rate.observe(ratio * per, per, 1e5, now);
                (low, high) = (low.min(ratio), high.max(ratio));
                let value = rate.value(PRIOR, now);
                proptest::prop_assert!(value >= low * 0.999 && value <= high * 1.001);
            }
        }
    }
}
