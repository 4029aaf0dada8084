//! The load score: how busy a pod is, as one number from 0 (idle) to 1 (saturated).
//!
//! Four terms, each from 0 to 1, of which any that is 1 alone saturates the pod, and which add up
//! where several are between: `1 - (1 - requests)(1 - latency)(1 - link)(1 - loss)`.

use std::time::Duration;

use serde::Serialize;

/// So many requests in flight are half of what there can be.
pub const HALF_REQUESTS: f64 = 32.0;
/// A latency of so many times the pod's own baseline is saturation.
pub const SATURATED_LATENCY: f64 = 4.0;
/// The part of what is sent that is sent again at which a path is saturated.
pub const SATURATED_LOSS: f64 = 0.05;
/// A baseline forgets half of how good things were in this time.
pub const BASELINE_HALF_LIFE: Duration = Duration::from_secs(600);

/// What the score is made of; `None` is not measured, and says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreInputs {
    pub in_flight: u64,
    /// The latency of now over the baseline.
    pub slowdown: Option<f64>,
    /// Of the busier direction of the link, 0 to 1.
    pub link_use: Option<f64>,
    /// Segments that were sent again, of those that were sent.
    pub loss: Option<f64>,
}

/// The terms of a score, each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    pub requests: f64,
    pub latency: f64,
    pub link: f64,
    pub loss: f64,
}

impl Score {
    /// ```
    /// use router_core::score::{Score, ScoreInputs};
    ///
    /// assert_eq!(Score::of(&ScoreInputs::default()).total(), 0.0);
    /// let half = Score::of(&ScoreInputs { in_flight: 32, ..ScoreInputs::default() });
    /// assert_eq!(half.total(), 0.5);
    /// let full = Score::of(&ScoreInputs { link_use: Some(1.0), ..ScoreInputs::default() });
    /// assert_eq!(full.total(), 1.0);
    /// ```
    pub fn of(inputs: &ScoreInputs) -> Score {
        let in_flight = inputs.in_flight as f64;
        let share = |measured: Option<f64>, idle: f64, saturated: f64| {
            let share = measured.map_or(0.0, |value| (value - idle) / (saturated - idle));
            if share > 0.0 { share.min(1.0) } else { 0.0 }
        };
        Score {
            requests: in_flight / (in_flight + HALF_REQUESTS),
            latency: share(inputs.slowdown, 1.0, SATURATED_LATENCY),
            link: share(inputs.link_use, 0.0, 1.0),
            loss: share(inputs.loss, 0.0, SATURATED_LOSS),
        }
    }

    /// All terms in one.
    pub fn total(&self) -> f64 {
        let idle = [self.requests, self.latency, self.link, self.loss];
        1.0 - idle.iter().map(|term| 1.0 - term).product::<f64>()
    }
}

/// What a latency is when its pod is at ease: the best that was seen, slowly forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baseline {
    best: Option<Duration>,
}

impl Baseline {
    /// Takes in what was measured over the last `elapsed`.
    pub fn observe(&mut self, latency: Duration, elapsed: Duration) {
        self.best = Some(match self.best {
            Some(best) if latency > best => {
                let forgotten = elapsed.as_secs_f64() / BASELINE_HALF_LIFE.as_secs_f64();
                let kept = (-forgotten).exp2();
                best.mul_f64(kept) + latency.mul_f64(1.0 - kept)
            }
            _ => latency,
        });
    }

    /// How many times longer than at ease `latency` is.
    pub fn slowdown(&self, latency: Duration) -> Option<f64> {
        let best = self.best.filter(|best| !best.is_zero())?;
        Some(latency.as_secs_f64() / best.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_alone_saturates_and_halves_add_up() {
        let late = ScoreInputs { slowdown: Some(9.0), ..ScoreInputs::default() };
        assert_eq!(Score::of(&late).total(), 1.0);
        let both = ScoreInputs { in_flight: 32, link_use: Some(0.5), ..ScoreInputs::default() };
        assert_eq!(Score::of(&both).total(), 0.75);
        let nonsense =
            ScoreInputs { slowdown: Some(f64::NAN), loss: Some(-1.0), ..ScoreInputs::default() };
        assert_eq!(Score::of(&nonsense).total(), 0.0);
    }

    #[test]
    fn a_baseline_takes_better_times_at_once_and_worse_ones_slowly() {
        let mut baseline = Baseline::default();
        let (ms, second) = (Duration::from_millis(10), Duration::from_secs(1));
        assert_eq!(baseline.slowdown(ms), None);
        baseline.observe(ms * 5, second);
        baseline.observe(ms, second);
        assert_eq!(baseline.slowdown(ms * 3), Some(3.0));
        for _ in 0..10 {
            baseline.observe(ms * 4, second);
        }
        assert!(baseline.slowdown(ms * 4).unwrap() > 3.8, "a busy minute is no new baseline");
        for _ in 0..3_600 {
            baseline.observe(ms * 4, second);
        }
        assert!(baseline.slowdown(ms * 4).unwrap() < 1.1, "an hour is");
    }

    proptest::proptest! {
        #[test]
        fn a_score_is_within_0_and_1_and_grows_with_each_sign(
            in_flight in 0u64..100_000, slow in 0.0f64..20.0, link in 0.0f64..2.0,
            loss in 0.0f64..1.0,
        ) {
            let inputs = ScoreInputs {
                in_flight, slowdown: Some(slow), link_use: Some(link), loss: Some(loss),
            };
            let total = Score::of(&inputs).total();
            proptest::prop_assert!((0.0..=1.0).contains(&total));
            let more = ScoreInputs { in_flight: in_flight + 1, slowdown: Some(slow + 0.1), ..inputs };
            proptest::prop_assert!(Score::of(&more).total() >= total);
        }
    }
}
