//! [`Summary`]: the results of a run.

use serde::Serialize;

use crate::FleetSetup;
use crate::simulation::{RequestStage, SimulatedRequest, Simulation};
use crate::trace::TraceRequest;
use router_core::schedule::SloTargets;

/// A distribution, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// The results of one policy at one load: each number is the mean over the seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub policy: &'static str,
    pub load: f64,
    pub seeds: u64,
    pub requests: f64,
    pub failed: f64,
    /// Time from a request's arrival to its first token.
    pub ttft_ms: Distribution,
    /// Mean time between the tokens of one response.
    pub itl_ms: Distribution,
    pub e2e_ms: Distribution,
    /// Requests per second within the targets.
    pub goodput_rps: f64,
    /// Share of all prompt tokens that a prefix cache held.
    pub cache_hit_rate: f64,
    /// Busy time of the busiest prefill relative to the mean, minus 1.
    pub prefill_imbalance: f64,
    /// Busy time of the busiest decode relative to the mean, minus 1.
    pub decode_imbalance: f64,
}

impl Distribution {
    /// Returns the distribution of `values`; all zero without values.
    pub fn of(mut values: Vec<f64>) -> Distribution {
        values.sort_unstable_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else { return Distribution::default() };
        let rank = |share: f64| values[((values.len() as f64 * share) as usize).min(last)];
        Distribution {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: rank(0.5),
            p90: rank(0.9),
            p99: rank(0.99),
        }
    }

    fn add(&mut self, other: &Distribution, weight: f64) {
        self.mean += other.mean * weight;
        self.p50 += other.p50 * weight;
        self.p90 += other.p90 * weight;
        self.p99 += other.p99 * weight;
    }
}

impl Summary {
    pub(crate) fn of(
        simulation: &Simulation<'_>,
        setup: &FleetSetup,
        arrivals: &[TraceRequest],
    ) -> Summary {
        let finished = || {
            let all = simulation.requests.iter().zip(arrivals);
            all.filter(|(request, _)| request.stage == RequestStage::Finished)
        };
        let ttft = |(request, arrival): (&SimulatedRequest, &TraceRequest)| {
            request.first_ms - arrival.at_ms
        };
        let itl = |(request, arrival): (&SimulatedRequest, &TraceRequest)| {
            (request.end_ms - request.first_ms) / f64::from(arrival.output_tokens.max(2) - 1)
        };
        let SloTargets { ttft_ms, itl_ms } = setup.targets;
        let met = finished()
            .filter(|&one| ttft(one) <= f64::from(ttft_ms) && itl(one) <= f64::from(itl_ms));
        let span_ms = arrivals.last().map_or(1.0, |arrival| arrival.at_ms.max(1.0));
        let cached: f64 = finished().map(|(request, _)| f64::from(request.cached)).sum();
        let tokens: f64 = finished().map(|(_, arrival)| f64::from(arrival.input_tokens)).sum();
        Summary {
            seeds: 1,
            requests: arrivals.len() as f64,
            failed: (arrivals.len() - finished().count()) as f64,
            ttft_ms: Distribution::of(finished().map(ttft).collect()),
            // A response of one token has no time between tokens.
            itl_ms: Distribution::of(
                finished().filter(|(_, arrival)| arrival.output_tokens > 1).map(itl).collect(),
            ),
            e2e_ms: Distribution::of(
                finished().map(|(request, arrival)| request.end_ms - arrival.at_ms).collect(),
            ),
            goodput_rps: met.count() as f64 / span_ms * 1000.0,
            cache_hit_rate: cached / tokens.max(1.0),
            prefill_imbalance: imbalance(simulation.prefills.iter().map(|prefill| prefill.busy_ms)),
            decode_imbalance: imbalance(simulation.decodes.iter().map(|decode| decode.busy_ms)),
            ..Summary::default()
        }
    }

    /// Returns the mean of the runs of several seeds.
    pub(crate) fn mean(runs: &[Summary]) -> Summary {
        let mut mean = Summary { seeds: runs.len() as u64, ..Summary::default() };
        let weight = 1.0 / runs.len().max(1) as f64;
        for run in runs {
            mean.requests += run.requests * weight;
            mean.failed += run.failed * weight;
            mean.ttft_ms.add(&run.ttft_ms, weight);
            mean.itl_ms.add(&run.itl_ms, weight);
            mean.e2e_ms.add(&run.e2e_ms, weight);
            mean.goodput_rps += run.goodput_rps * weight;
            mean.cache_hit_rate += run.cache_hit_rate * weight;
            mean.prefill_imbalance += run.prefill_imbalance * weight;
            mean.decode_imbalance += run.decode_imbalance * weight;
        }
        mean
    }
}

fn imbalance(busy: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let mean = busy.clone().sum::<f64>() / busy.len().max(1) as f64;
    let most = busy.fold(0.0, f64::max);
    if mean > 0.0 { most / mean - 1.0 } else { 0.0 }
}
