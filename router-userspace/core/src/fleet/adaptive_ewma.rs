//! [`AdaptiveEwma`]: a rate that is learned from what is measured, and forgotten when nothing is.
//!
//! One word, so that a reader never sees half of a change: the mean, the weight of its evidence,
//! how long that holds and when the last of it came. Time is an argument, in milliseconds of the
//! caller's clock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Evidence that nobody renews loses half of its weight in this time: what is steady always, what
/// may change at any moment once it was confirmed often enough.
pub const HALF_LIFE_MS: u64 = 10_000;
/// The same for what was seen for the first time of something that may change at any moment.
pub const FRESH_HALF_LIFE_MS: u64 = 100;
/// Confirmations that count: with so many it is [`HALF_LIFE_MS`].
const MOST_HOLD: u8 = 27;
/// Evidence is confirmed by what comes when it has faded for so many of its half-lives.
const FADED_HALF_LIVES: u32 = 2;
/// What is so many half-lives old counts for nothing. Without that the last of much evidence would keep what
/// looked very bad from looking like any other for as long again.
const FORGOTTEN_HALF_LIVES: u32 = 8;
/// What differs by more than this factor, either way, is another state of things.
const ALIKE: f32 = 2.0;
/// The same, of what many do: closer, so that one in trouble is none of them.
const USUAL: f32 = 1.5;

// The parts of the word. No sign is kept: means and weights are positive.
const TICK_BITS: u32 = 22;
const HOLD_BITS: u32 = 5;
const WEIGHT_BITS: u32 = 15;
const MEAN_BITS: u32 = 22;
const _: () = assert!(TICK_BITS + HOLD_BITS + WEIGHT_BITS + MEAN_BITS == u64::BITS);
/// Ticks of the time of the last evidence: 16 ms, wrapping after 18 hours.
const TICK_SHIFT: u32 = 4;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;

/// A ratio of two measured sums, for example microseconds a byte.
#[derive(Debug, Default)]
pub struct AdaptiveEwma(AtomicU64);

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
    /// How often it was confirmed: what its half-life goes by.
    hold: u8,
    tick: u32,
}

/// New evidence, and how much of the past counts beside it.
#[derive(Clone, Copy)]
struct Sample {
    amount: f32,
    per: f32,
    memory: f32,
    tick: u32,
}

impl Evidence {
    fn unpack(word: u64) -> Evidence {
        let part = |shift: u32, bits: u32| (word >> shift) as u32 & ((1 << bits) - 1);
        Evidence {
            mean: widened(part(TICK_BITS + HOLD_BITS + WEIGHT_BITS, MEAN_BITS), MEAN_BITS),
            weight: widened(part(TICK_BITS + HOLD_BITS, WEIGHT_BITS), WEIGHT_BITS),
            hold: part(TICK_BITS, HOLD_BITS) as u8,
            tick: part(0, TICK_BITS),
        }
    }

    /// Nothing where it is too large for the word.
    fn pack(self) -> Option<u64> {
        let mean = u64::from(narrowed(self.mean, MEAN_BITS)?);
        let weight = u64::from(narrowed(self.weight, WEIGHT_BITS)?);
        let above = (((mean << WEIGHT_BITS) | weight) << HOLD_BITS) | u64::from(self.hold);
        Some((above << TICK_BITS) | u64::from(self.tick))
    }

    fn age_ms(self, tick: u32) -> u32 {
        (tick.wrapping_sub(self.tick) & TICK_MASK) << TICK_SHIFT
    }

    fn weight_at(self, tick: u32) -> f32 {
        let (age_ms, half_life_ms) = (self.age_ms(tick), half_life_ms(self.hold));
        let is_forgotten = age_ms as f32 >= half_life_ms * FORGOTTEN_HALF_LIVES as f32;
        if is_forgotten { 0.0 } else { self.weight * fading(age_ms, half_life_ms) }
    }

    /// With `sample` beside it, of what is steady.
    fn steady(self, sample: Sample) -> Evidence {
        self.with(sample, self.weight_at(sample.tick), MOST_HOLD)
    }

    /// The same of what may change at any moment. What is alike confirms it, and all of it counts
    /// again; what is not begins anew, beside as much as is as fresh.
    fn followed(self, sample: Sample) -> Evidence {
        let age_ms = self.age_ms(sample.tick);
        if self.differs(sample, ALIKE) {
            return self.with(sample, self.weight * fading(age_ms, FRESH_HALF_LIFE_MS as f32), 0);
        }
        let faded = age_ms as f32 >= half_life_ms(self.hold) * FADED_HALF_LIVES as f32;
        self.with(sample, self.weight, (self.hold + u8::from(faded)).min(MOST_HOLD))
    }

    /// The same of what most do. What differs speaks against it, and takes its place once nothing
    /// speaks for it any more.
    fn voted(self, sample: Sample) -> Evidence {
        let weight = self.weight_at(sample.tick);
        match self.differs(sample, USUAL) {
            true if weight > sample.per => {
                Evidence { weight: weight - sample.per, tick: sample.tick, ..self }
            }
            true => self.with(sample, 0.0, MOST_HOLD),
            false => self.with(sample, weight, MOST_HOLD),
        }
    }

    fn differs(self, sample: Sample, factor: f32) -> bool {
        let seen = sample.amount / sample.per;
        seen > self.mean * factor || seen * factor < self.mean
    }

    /// As much of it as `kept` says, and a sample.
    fn with(self, sample: Sample, kept: f32, hold: u8) -> Evidence {
        let kept = kept.min(sample.memory);
        let weight = kept + sample.per;
        let mean = (self.mean * kept + sample.amount) / weight;
        Evidence { mean, weight, hold, tick: sample.tick }
    }
}

/// The upper bits of a positive number, rounded; nothing of one that is infinite then.
fn narrowed(number: f32, bits: u32) -> Option<u32> {
    let shift = u32::BITS - 1 - bits;
    let upper = number.to_bits().checked_add(1 << (shift - 1))? >> shift;
    widened(upper, bits).is_finite().then_some(upper)
}

fn widened(upper: u32, bits: u32) -> f32 {
    f32::from_bits(upper << (u32::BITS - 1 - bits))
}

fn half_life_ms(hold: u8) -> f32 {
    // Four confirmations double it.
    (FRESH_HALF_LIFE_MS as f32 * (f32::from(hold) / 4.0).exp2()).min(HALF_LIFE_MS as f32)
}

fn fading(age_ms: u32, half_life_ms: f32) -> f32 {
    if age_ms == 0 { 1.0 } else { (-(age_ms as f32) / half_life_ms).exp2() }
}

fn tick_of(now_ms: u64) -> u32 {
    (now_ms >> TICK_SHIFT) as u32 & TICK_MASK
}

impl AdaptiveEwma {
    /// Adds `amount` over `per` units to what is steady. `memory`, in the same units, is how much
    /// of the past counts beside it. What is not positive and finite is no evidence.
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
        self.learn(amount, per, memory, now_ms, Evidence::steady);
    }

    /// The same for what may change at any moment and is avoided when it looks bad, so that
    /// nobody sees it mended. Evidence fades with [`FRESH_HALF_LIFE_MS`] at first, and each time
    /// that it has faded and is seen again, the half-life grows by a fifth, up to
    /// [`HALF_LIFE_MS`]: what lasts is tried more and more rarely. Evidence of another state of
    /// things takes the place of what is older.
    pub fn observe_volatile(&self, amount: f32, per: f32, memory: f32, now_ms: u64) {
        self.learn(amount, per, memory, now_ms, Evidence::followed);
    }

    /// The same of what many do, of whom some may be in trouble for a while: what most samples say,
    /// give or take a half.
    pub fn observe_consensus(&self, amount: f32, per: f32, memory: f32, now_ms: u64) {
        self.learn(amount, per, memory, now_ms, Evidence::voted);
    }

    fn learn(
        &self,
        amount: f32,
        per: f32,
        memory: f32,
        now_ms: u64,
        beside: impl Fn(Evidence, Sample) -> Evidence,
    ) {
        let sound = |x: f32| x.is_finite() && x > 0.0;
        if !(sound(amount) && sound(per) && sound(memory)) {
            return;
        }
        let sample = Sample { amount, per, memory, tick: tick_of(now_ms) };
        let next = |word| beside(Evidence::unpack(word), sample).pack();
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
        Evidence::unpack(self.0.load(Ordering::Relaxed)).age_ms(tick_of(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIOR: Prior = Prior { value: 10.0, weight: 1.0 };

    #[test]
    fn evidence_outweighs_the_prior_and_fades_back_to_it() {
        let rate = AdaptiveEwma::default();
        assert_eq!(rate.value(PRIOR, 0), 10.0);
        assert_eq!(rate.mean(), None);
        for _ in 0..100 {
            rate.observe_steady(50.0, 1.0, 100.0, 0);
        }
        assert!((rate.value(PRIOR, 0) - 50.0).abs() < 1.0, "{}", rate.value(PRIOR, 0));
        let mut last = rate.value(PRIOR, 0);
        for half_lives in 1..u64::from(FORGOTTEN_HALF_LIVES) {
            let now = rate.value(PRIOR, half_lives * HALF_LIFE_MS);
            assert!(now < last);
            last = now;
        }
        assert!(last < 30.0, "{last}");
        assert_eq!(rate.value(PRIOR, u64::from(FORGOTTEN_HALF_LIVES) * HALF_LIFE_MS), 10.0);
    }

    #[test]
    fn the_recent_past_counts_for_more_than_the_distant_one() {
        let rate = AdaptiveEwma::default();
        for _ in 0..1000 {
            rate.observe_steady(5.0, 1.0, 10.0, 0);
        }
        for _ in 0..30 {
            rate.observe_steady(20.0, 1.0, 10.0, 0);
        }
        assert!(rate.value(PRIOR, 0) > 17.0, "{}", rate.value(PRIOR, 0));
    }

    /// When it looks nearly like any other: a twentieth worse.
    fn tried_after_ms(rate: &AdaptiveEwma, from_ms: u64) -> u64 {
        let tried =
            (from_ms..).step_by(16).find(|now| rate.value(PRIOR, *now) < PRIOR.value * 1.05);
        tried.unwrap() - from_ms
    }

    #[test]
    fn what_is_seen_again_and_again_holds_longer_each_time() {
        let rate = AdaptiveEwma::default();
        for _ in 0..20 {
            rate.observe_volatile(60.0, 1.0, 16.0, 0);
        }
        let (mut now, mut before, mut trials) = (0, 0, 0);
        while now < 600_000 {
            let waits = tried_after_ms(&rate, now);
            assert!(waits >= before, "{waits} ms after {before} ms");
            assert!(waits <= 900 + now / 4, "avoided for {waits} ms after {now} ms");
            (now, before, trials) = (now + waits, waits, trials + 1);
            rate.observe_volatile(60.0, 1.0, 16.0, now);
            assert!(rate.value(PRIOR, now) > 50.0, "one more is enough to know it again");
        }
        assert!(trials < 35, "{trials} trials in ten minutes");
    }

    #[test]
    fn one_good_trial_mends_what_is_long_known_for_bad() {
        let rate = AdaptiveEwma::default();
        for second in 0..600 {
            rate.observe_volatile(60.0, 1.0, 16.0, second * 1000);
        }
        assert!(rate.value(PRIOR, 599_000) > 50.0);
        rate.observe_volatile(9.0, 1.0, 16.0, 601_000);
        assert!(rate.value(PRIOR, 601_000) < 10.0, "{}", rate.value(PRIOR, 601_000));
        // What is steady takes more than one to be told otherwise.
        let steady = AdaptiveEwma::default();
        for second in 0..600 {
            steady.observe_steady(60.0, 1.0, 16.0, second * 1000);
        }
        steady.observe_steady(9.0, 1.0, 16.0, 601_000);
        assert!(steady.value(PRIOR, 601_000) > 40.0);
    }

    #[test]
    fn what_most_say_is_not_moved_by_the_trouble_of_a_few() {
        let usual = AdaptiveEwma::default();
        for _ in 0..50 {
            usual.observe_consensus(5.0, 1.0, 64.0, 0);
        }
        for _ in 0..40 {
            usual.observe_consensus(30.0, 1.0, 64.0, 0);
        }
        assert_eq!(usual.mean(), Some(5.0));
        // When it is what all do, it is usual soon.
        for _ in 0..70 {
            usual.observe_consensus(30.0, 1.0, 64.0, 0);
        }
        assert_eq!(usual.mean(), Some(30.0));
    }

    #[test]
    fn nonsense_is_no_evidence() {
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
        fn a_value_stays_between_the_prior_and_what_was_seen(
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
