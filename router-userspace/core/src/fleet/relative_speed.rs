//! [`RelativeSpeed`]: whether one prefill is faster or slower than its pool, by a significance test.
//!
//! Most of what a time says about one worker is noise: bytes are no tokens, caches are estimated,
//! queues are seen late. A worker therefore has its pool's rate until its mean deviation is
//! significant. The deviation `d` of the logarithm of the time, with `n` observations of variance
//! `v`, counts with the weight `1 - c * v / (n * d^2)`, and not at all below zero (the non-negative
//! garrote of Breiman 1995). `c` is the critical value of the test, so a deviation that chance
//! explains at that level counts for nothing, and a large one in full.

use parking_lot::Mutex;
use serde::Serialize;

/// The parameters of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedTuning {
    /// Critical value of the chi-squared distribution with one degree of freedom.
    pub critical_value: f32,
    /// Time in which evidence loses half of its weight.
    pub half_life_ms: f32,
}

impl SpeedTuning {
    /// One healthy worker in 1,000 looks different by chance.
    pub const USUAL: SpeedTuning = SpeedTuning { critical_value: 10.83, half_life_ms: 60_000.0 };
}

impl Default for SpeedTuning {
    fn default() -> SpeedTuning {
        SpeedTuning::USUAL
    }
}

/// Maximum number of observations that the variance of a pool is taken over.
const VARIANCE_MEMORY: f32 = 500.0;
/// Variance that is assumed with the weight of one observation: that of a uniform distribution over
/// the range of a time, a factor of three up or down.
const PRIOR_VARIANCE: f32 = 0.4;

/// A pool's mean deviation and the variance of one observation of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpeedSpread {
    pub mean: f32,
    pub variance: f32,
}

#[derive(Clone, Copy, Debug, Default)]
struct SpeedEvidence {
    mean: f32,
    /// Number of independent observations, decayed.
    count: f32,
    at_ms: u64,
    /// End of the last observation. An observation that overlaps with it counts in part.
    ended_ms: u64,
    variance: f32,
    variance_count: f32,
}

/// The deviations of one worker, or of all workers of a pool.
#[derive(Debug, Default)]
pub struct RelativeSpeed {
    tuning: SpeedTuning,
    evidence: Mutex<SpeedEvidence>,
}

impl RelativeSpeed {
    pub fn new(tuning: SpeedTuning) -> RelativeSpeed {
        RelativeSpeed { tuning, ..RelativeSpeed::default() }
    }

    /// Records that a worker took `exp(deviation)` of the time that its pool's rate predicts, from
    /// `sent_ms` to `now_ms`. Values that are not finite are ignored.
    pub fn observe(&self, pool: &RelativeSpeed, deviation: f32, sent_ms: u64, now_ms: u64) {
        if !deviation.is_finite() {
            return;
        }
        let (weight, surprise) = {
            let mut own = self.evidence.lock();
            let fresh = now_ms.saturating_sub(own.ended_ms.max(sent_ms)) as f32;
            let weight = (fresh / now_ms.saturating_sub(sent_ms).max(1) as f32).min(1.0);
            own.ended_ms = own.ended_ms.max(now_ms);
            (weight, own.add(deviation, weight, self.tuning, now_ms))
        };
        let mut pool = pool.evidence.lock();
        pool.add(deviation, weight, self.tuning, now_ms);
        if let Some(surprise) = surprise.filter(|_| weight > 0.0) {
            pool.variance_count = pool.variance_count.min(VARIANCE_MEMORY) + weight;
            let step = weight / pool.variance_count;
            pool.variance += (surprise - pool.variance) * step;
        }
    }

    /// Returns the spread of a pool.
    pub fn spread(&self) -> SpeedSpread {
        let SpeedEvidence { mean, variance, variance_count, .. } = *self.evidence.lock();
        let variance = (variance * variance_count + PRIOR_VARIANCE) / (variance_count + 1.0);
        SpeedSpread { mean, variance }
    }

    /// Returns the worker's time as a multiple of its pool's: 1 unless the evidence is significant.
    pub fn factor(&self, pool: SpeedSpread, now_ms: u64) -> f32 {
        let own = *self.evidence.lock();
        let count = own.count_at(self.tuning, now_ms);
        significant(own.mean - pool.mean, pool.variance / count, self.tuning.critical_value).exp()
    }
}

impl SpeedEvidence {
    fn count_at(&self, tuning: SpeedTuning, now_ms: u64) -> f32 {
        let age_ms = now_ms.saturating_sub(self.at_ms) as f32;
        self.count * (-age_ms / tuning.half_life_ms).exp2()
    }

    /// Returns an unbiased sample of the variance of an observation, if there was one before.
    fn add(&mut self, x: f32, weight: f32, tuning: SpeedTuning, now_ms: u64) -> Option<f32> {
        let count = self.count_at(tuning, now_ms);
        let off = x - self.mean;
        let sample = (count >= 1.0).then(|| off * off * count / (count + 1.0));
        if count + weight > 0.0 {
            self.mean += off * weight / (count + weight);
        }
        (self.count, self.at_ms) = (count + weight, now_ms);
        sample
    }
}

/// The part of `deviation` that is significant, where `variance` is that of the deviation.
pub(super) fn significant(deviation: f32, variance: f32, critical_value: f32) -> f32 {
    let weight = 1.0 - critical_value * variance / (deviation * deviation);
    // Written so that no evidence (0 / 0, or an infinite variance) counts for nothing.
    if weight > 0.0 { deviation * weight } else { 0.0 }
}

/// [`RelativeSpeed`] as the admin API shows it: the worker's mean time as a multiple of the predicted.
impl Serialize for RelativeSpeed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let own = *self.evidence.lock();
        (own.count > 0.0).then(|| own.mean.exp()).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `rounds` observations of eight workers, the first of which is `slow` times as slow.
    fn fleet(slow: f32, rounds: u64) -> (RelativeSpeed, Vec<RelativeSpeed>) {
        let (pool, workers) = (
            RelativeSpeed::default(),
            (0..8).map(|_| RelativeSpeed::default()).collect::<Vec<_>>(),
        );
        for round in 0..rounds {
            for (at, worker) in workers.iter().enumerate() {
                let noise = (round * 8 + at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let noise = (noise as f32 / (1u64 << 24) as f32 - 0.5) * 1.2;
                let slow = if at == 0 { slow.ln() } else { 0.0 };
                worker.observe(&pool, noise + slow, round * 1000, round * 1000 + 900);
            }
        }
        (pool, workers)
    }

    #[test]
    fn healthy_workers_have_their_pool_s_rate_and_a_slow_one_is_found() {
        let (pool, workers) = fleet(1.0, 60);
        let all = workers.iter().map(|worker| worker.factor(pool.spread(), 60_000));
        assert_eq!(all.filter(|factor| *factor != 1.0).count(), 0);
        let (pool, workers) = fleet(3.0, 8);
        let factor = workers[0].factor(pool.spread(), 8_000);
        assert!(factor > 1.8, "{factor} after eight observations");
        let healthy = workers[1].factor(pool.spread(), 8_000);
        assert!(factor / healthy > 1.8, "{healthy}");
    }

    #[test]
    fn evidence_expires() {
        let (pool, workers) = fleet(3.0, 30);
        assert!(workers[0].factor(pool.spread(), 30_000) > 2.0);
        assert_eq!(workers[0].factor(pool.spread(), 300_000), 1.0);
    }

    #[test]
    fn overlapping_observations_are_counted_once() {
        let (pool, worker) = (RelativeSpeed::default(), RelativeSpeed::default());
        for _ in 0..1000 {
            worker.observe(&pool, 1.0, 0, 1_000);
        }
        assert_eq!(worker.evidence.lock().count, 1.0);
        worker.observe(&pool, f32::NAN, 1_000, 2_000);
        assert_eq!(worker.evidence.lock().mean, 1.0);
    }
}
