//! The load score: how busy a pod is, from 0 (idle) to 1 (saturated).
//!
//! The score combines four terms from 0 to 1. A single term of 1 saturates the pod, and partial terms
//! accumulate: `1 - (1 - requests)(1 - latency)(1 - link)(1 - loss)`.

use std::time::Duration;

use serde::Serialize;

/// Number of requests in flight at which the request term is 0.5.
pub const HALF_REQUESTS: f64 = 32.0;
/// Multiple of the pod's baseline latency at which the latency term is 1.
pub const SATURATED_LATENCY: f64 = 4.0;
/// Share of retransmitted segments at which the loss term is 1.
pub const SATURATED_LOSS: f64 = 0.05;
/// Half-life of a baseline: time in which it moves halfway to a higher latency.
pub const BASELINE_HALF_LIFE: Duration = Duration::from_secs(600);

/// The inputs of a score. `None` means not measured, and does not raise the score.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreInputs {
    pub in_flight: u64,
    /// Current latency divided by the baseline.
    pub slowdown: Option<f64>,
    /// Utilisation of the busier direction of the link, 0 to 1.
    pub link_use: Option<f64>,
    /// Retransmitted segments divided by sent segments.
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

    /// The combined score.
    pub fn total(&self) -> f64 {
        let idle = [self.requests, self.latency, self.link, self.loss];
        1.0 - idle.iter().map(|term| 1.0 - term).product::<f64>()
    }
}

/// A pod's latency without load: the lowest one seen, which decays upwards slowly.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baseline {
    best: Option<Duration>,
}

impl Baseline {
    /// Adds the latency measured over the last `elapsed`.
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

    /// `latency` divided by the baseline.
    pub fn slowdown(&self, latency: Duration) -> Option<f64> {
        let best = self.best.filter(|best| !best.is_zero())?;
        Some(latency.as_secs_f64() / best.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_term_saturates_and_partial_terms_accumulate() {
        let late = ScoreInputs { slowdown: Some(9.0), ..ScoreInputs::default() };
        assert_eq!(Score::of(&late).total(), 1.0);
        let both = ScoreInputs { in_flight: 32, link_use: Some(0.5), ..ScoreInputs::default() };
        assert_eq!(Score::of(&both).total(), 0.75);
        let nonsense =
            ScoreInputs { slowdown: Some(f64::NAN), loss: Some(-1.0), ..ScoreInputs::default() };
        assert_eq!(Score::of(&nonsense).total(), 0.0);
    }

    #[test]
    fn a_baseline_follows_lower_latencies_at_once_and_higher_ones_slowly() {
        let mut baseline = Baseline::default();
        let (ms, second) = (Duration::from_millis(10), Duration::from_secs(1));
        assert_eq!(baseline.slowdown(ms), None);
        baseline.observe(ms * 5, second);
        baseline.observe(ms, second);
        assert_eq!(baseline.slowdown(ms * 3), Some(3.0));
        for _ in 0..10 {
            baseline.observe(ms * 4, second);
        }
        assert!(
            baseline.slowdown(ms * 4).unwrap() > 3.8,
            "ten busy seconds do not change the baseline"
        );
        for _ in 0..3_600 {
            baseline.observe(ms * 4, second);
        }
        assert!(baseline.slowdown(ms * 4).unwrap() < 1.1, "an hour is");
    }

    proptest::proptest! {
        #[test]
        fn a_score_is_within_0_and_1_and_grows_with_each_input(
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
