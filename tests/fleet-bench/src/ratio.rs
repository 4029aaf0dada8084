//! Ratios of two routers over the same requests, with intervals that are bootstrapped by round.
//!
//! Requests of one round share its queue and its caches, so they are not independent: drawing single
//! requests again would give intervals that are too narrow. Rounds are drawn instead.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Number of bootstrap samples.
const DRAWS: usize = 2_000;

/// A statistic of a list of values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Statistic {
    Mean,
    /// The smallest value that is at least as large as this share of the values.
    Quantile(f64),
}

impl Statistic {
    /// None of no values.
    pub(crate) fn of(self, values: &[f64]) -> Option<f64> {
        if values.is_empty() {
            return None;
        }
        Some(match self {
            Statistic::Mean => values.iter().sum::<f64>() / values.len() as f64,
            Statistic::Quantile(share) => {
                let mut sorted = values.to_vec();
                sorted.sort_by(f64::total_cmp);
                let rank = (share * sorted.len() as f64).ceil() as usize;
                sorted[rank.clamp(1, sorted.len()) - 1]
            }
        })
    }
}

/// A ratio and its 95 % interval.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) ratio: f64,
    /// None with a single round.
    pub(crate) interval: Option<(f64, f64)>,
    /// The ratio within each round.
    pub(crate) by_round: Vec<f64>,
}

/// One round: the values of both routers, request by request.
pub(crate) type PairedRound = Vec<(f64, f64)>;

/// The first router's statistic over the second's; none if there is no pair of values.
pub(crate) fn ratio(rounds: &[PairedRound], statistic: Statistic) -> Option<Ratio> {
    let rounds: Vec<&PairedRound> = rounds.iter().filter(|round| !round.is_empty()).collect();
    let of = |rounds: &[&PairedRound]| -> Option<f64> {
        let values = || rounds.iter().flat_map(|round| round.iter());
        let first: Vec<f64> = values().map(|pair| pair.0).collect();
        let second: Vec<f64> = values().map(|pair| pair.1).collect();
        Some(statistic.of(&first)? / statistic.of(&second)?)
    };
    let by_round = rounds.iter().map(|round| of(&[*round])).collect::<Option<Vec<f64>>>()?;
    let interval = (rounds.len() > 1).then(|| {
        let mut random = StdRng::seed_from_u64(1);
        let mut drawn: Vec<f64> = (0..DRAWS)
            .filter_map(|_| {
                let draw = |_| rounds[random.random_range(0..rounds.len())];
                of(&(0..rounds.len()).map(draw).collect::<Vec<_>>())
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        (drawn[drawn.len() / 40], drawn[drawn.len() - 1 - drawn.len() / 40])
    });
    Some(Ratio { ratio: of(&rounds)?, interval, by_round })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(Statistic::Quantile(0.99).of(&values), Some(99.0));
        assert_eq!(Statistic::Quantile(0.5).of(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(Statistic::Quantile(0.99).of(&[3.0, 1.0]), Some(3.0));
        assert_eq!(Statistic::Mean.of(&[]), None);
    }

    #[test]
    fn rounds_that_differ_make_the_interval_wide_however_many_requests_they_have() {
        // Within a round all ratios are equal: requests drawn one by one would say 0.75 +- little.
        let rounds = [vec![(0.5, 1.0); 1_000], vec![(1.0, 1.0); 1_000]];
        let ratio = ratio(&rounds, Statistic::Mean).unwrap();
        assert_eq!((ratio.ratio, ratio.by_round), (0.75, vec![0.5, 1.0]));
        assert_eq!(ratio.interval, Some((0.5, 1.0)));
    }

    #[test]
    fn equal_rounds_make_it_narrow_and_one_round_makes_none() {
        let rounds = vec![vec![(2.0, 1.0), (4.0, 2.0)]; 4];
        let all = ratio(&rounds, Statistic::Quantile(0.99)).unwrap();
        assert_eq!((all.ratio, all.interval), (2.0, Some((2.0, 2.0))));
        assert_eq!(ratio(&rounds[..1], Statistic::Mean).unwrap().interval, None);
        assert_eq!(ratio(&[vec![]], Statistic::Mean), None);
    }
}
