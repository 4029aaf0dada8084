//! Predicted: the pair with the lowest predicted cost in milliseconds, over both legs at once.
//!
//! Each leg is scored alone, which is linear. The best few of each leg are then combined: only the
//! link depends on both.

use super::candidate::Candidate;
use super::draw::Draw;
use super::estimate::{DecodeTerms, Estimate, Estimator, PrefillTerms};
use super::fallback_load::FallbackLoad;
use super::input::{ChoiceInput, Chosen, Objective};
use super::shortlist::Shortlist;
use crate::pair::Pair;

/// One request in this many is sent to a pair that looks bad, to measure it again.
const EXPLORE_ONE_IN: usize = 100;
/// Number of random pairs that such a request chooses among.
const EXPLORE_AMONG: usize = 8;
/// Pairs whose cost is within this share of the best pair's TTFT, or within [`TIE_MS`], are tied.
/// One of them is chosen at random, so that gateways do not all choose the same worker.
const TIE_SHARE: f32 = 0.01;
const TIE_MS: f32 = 1.0;
/// Cost added to a pair whose pods are of different groups.
const GROUP_MS: f32 = 2.0;
/// Share of the waiting requests that are delayed by additional prefill work.
const PRESSURE: f32 = 0.5;
const MAX_PRESSURE: f32 = 10.0;
/// Maximum number of candidates that a mean is taken over.
const MAX_SAMPLES: usize = 64;
/// Cost of each missed target: a pair that misses one is worse than any pair that does not.
const MISS_MS: f32 = 1e6;

#[derive(Clone, Copy, Debug)]
struct Scored {
    prefill: usize,
    decode: usize,
    cost_ms: f32,
    estimate: Estimate,
}

/// Scores the pairs of one choice.
struct PairScorer<'a> {
    input: &'a ChoiceInput<'a>,
    estimator: Estimator<'a>,
}

pub(super) fn choose(input: &ChoiceInput<'_>) -> Option<Chosen> {
    let Pair { prefill, decode } = input.candidates;
    if prefill.is_empty() || decode.is_empty() {
        return None;
    }
    let scorer = PairScorer { input, estimator: estimator(input) };
    let first = input.draw.second();
    let second = first.second();
    let prefills =
        Shortlist::of(prefill, first, |candidate, bar| scorer.prefill_ms(candidate, bar));
    let decodes = Shortlist::of(decode, second, |candidate, bar| scorer.decode_ms(candidate, bar));
    let (best, runner_up) = scorer.best(&prefills, &decodes, second.second())?;
    let explored = scorer.explore(&best, second.second().second());
    let taken = explored.unwrap_or(best);
    let ids =
        |pair: &Scored| Pair { prefill: prefill[pair.prefill].id, decode: decode[pair.decode].id };
    let beaten = if explored.is_some() { Some(best) } else { runner_up };
    Some(Chosen {
        pair: ids(&taken),
        work_bytes: Some(taken.estimate.work_bytes),
        estimate: Some(taken.estimate),
        runner_up: beaten.map(|other| (ids(&other), other.estimate)),
        explored: explored.is_some(),
    })
}

fn estimator<'a>(input: &'a ChoiceInput<'a>) -> Estimator<'a> {
    let Pair { prefill, decode } = input.candidates;
    Estimator {
        demand: &input.demand,
        per_context: 1.0 / input.assumptions.context_doubles_bytes,
        per_batch: 1.0 / input.assumptions.batch_doubles_tokens,
        fallback: Pair { prefill: FallbackLoad::of(prefill), decode: FallbackLoad::of(decode) },
        pressure: pressure(prefill),
        others_waiting_bytes: mean(prefill, |candidate| {
            candidate.load.map_or(0.0, |load| load.others_waiting_bytes)
        }),
        rendezvous: input.demand.rendezvous(prefill.iter().map(Candidate::cache), |_| true),
    }
}

/// Milliseconds of delay to later requests per millisecond of prefill; grows with the queues.
fn pressure(prefills: &[Candidate]) -> f32 {
    let requests = mean(prefills, |candidate| {
        let others = candidate.load.map_or(0.0, |load| load.others_requests);
        candidate.usage.requests as f32 + others
    });
    (PRESSURE * requests).clamp(0.0, MAX_PRESSURE)
}

/// Mean over at most [`MAX_SAMPLES`] candidates, spread evenly.
fn mean(candidates: &[Candidate], of: impl Fn(&Candidate) -> f32) -> f32 {
    let stride = candidates.len().div_ceil(MAX_SAMPLES).max(1);
    let sum: f32 = candidates.iter().step_by(stride).map(of).sum();
    sum / candidates.len().div_ceil(stride) as f32
}

impl PairScorer<'_> {
    /// Cost of a prefill with a decode that receives at any speed.
    fn prefill_ms(&self, candidate: &Candidate, bar: f32) -> f32 {
        let wait_ms = self.estimator.wait_ms(candidate);
        if wait_ms >= bar {
            return wait_ms;
        }
        let terms = self.estimator.prefill(candidate);
        let free = DecodeTerms { rx_bytes_per_ms: f32::INFINITY, ..DecodeTerms::default() };
        let link = self.input.assumptions.link.link;
        self.estimator.pair(&terms, &free, link, &candidate.rates).first_leg_ms()
    }

    /// Cost of a decode, including the transfer at its receiving speed.
    fn decode_ms(&self, candidate: &Candidate, bar: f32) -> f32 {
        let DecodeTerms { itl_ms, batch_cost_ms, admission_ms, rx_bytes_per_ms } =
            self.estimator.decode(candidate);
        let output_tokens = candidate.rates.output_tokens;
        let cost_ms = admission_ms
            + decode_cost_ms(itl_ms, batch_cost_ms, output_tokens, &self.input.objective);
        if cost_ms >= bar {
            return cost_ms;
        }
        let bytes = self.input.demand.prompt_bytes as f32 * candidate.rates.kv_bytes_per_byte;
        cost_ms + bytes / rx_bytes_per_ms
    }

    /// Returns the best of the listed pairs, with ties broken by `draw`, and the next best.
    fn best(
        &self,
        prefills: &Shortlist,
        decodes: &Shortlist,
        mut draw: Draw,
    ) -> Option<(Scored, Option<Scored>)> {
        let mut best: Option<Scored> = None;
        let mut next: Option<Scored> = None;
        let mut ties = 1;
        let Pair { prefill: all, decode: mates } = self.input.candidates;
        let mut of_decode = [DecodeTerms::default(); Shortlist::MAX];
        for (terms, decode) in of_decode.iter_mut().zip(decodes.iter()) {
            *terms = self.estimator.decode(&mates[decode]);
        }
        for prefill in prefills.iter() {
            let of_prefill = self.estimator.prefill(&all[prefill]);
            for (decode, of_decode) in decodes.iter().zip(&of_decode) {
                let pair = self.score((prefill, &of_prefill), (decode, of_decode));
                let Some(leader) = best else {
                    best = Some(pair);
                    continue;
                };
                let margin = (leader.estimate.ttft_ms() * TIE_SHARE).max(TIE_MS);
                let ahead = leader.cost_ms - pair.cost_ms;
                if ahead > margin {
                    (best, next, ties) = (Some(pair), best, 1);
                    continue;
                }
                let tied = ahead > -margin;
                if tied {
                    ties += 1;
                    draw = draw.second();
                }
                if tied && draw.below(ties) == 0 {
                    (best, next) = (Some(pair), best);
                } else if next.is_none_or(|next| pair.cost_ms < next.cost_ms) {
                    next = Some(pair);
                }
            }
        }
        best.map(|best| (best, next))
    }

    fn score(
        &self,
        (prefill, of_prefill): (usize, &PrefillTerms),
        (decode, of_decode): (usize, &DecodeTerms),
    ) -> Scored {
        let p = &self.input.candidates.prefill[prefill];
        let d = &self.input.candidates.decode[decode];
        let ChoiceInput { assumptions, now_ms, objective, .. } = *self.input;
        let link = self.input.links.map_or(assumptions.link.link, |links| {
            links.get(p.worker, d.worker, assumptions.link, now_ms)
        });
        let estimate = self.estimator.pair(of_prefill, of_decode, link, &p.rates);
        let apart = p.group != 0 && p.group != d.group;
        let Estimate { itl_ms, batch_cost_ms, output_tokens, .. } = estimate;
        let missed = objective.targets.map_or(0, |targets| {
            u8::from(estimate.ttft_ms() > targets.ttft_ms) + u8::from(itl_ms > targets.itl_ms)
        });
        let cost_ms = estimate.first_leg_ms()
            + decode_cost_ms(itl_ms, batch_cost_ms, output_tokens, &objective)
            + if apart { GROUP_MS } else { 0.0 }
            + f32::from(missed) * MISS_MS;
        Scored { prefill, decode, cost_ms, estimate }
    }

    /// Returns, for one request in [`EXPLORE_ONE_IN`], the worst of some random pairs that are no
    /// busier than the best pair. An avoided worker or link yields no new measurements, so without
    /// this it would be avoided for longer than necessary. The request never joins a longer queue.
    fn explore(&self, best: &Scored, mut draw: Draw) -> Option<Scored> {
        if draw.below(EXPLORE_ONE_IN) != 0 {
            return None;
        }
        let Pair { prefill: prefills, decode: decodes } = self.input.candidates;
        let mut worst: Option<Scored> = None;
        for _ in 0..EXPLORE_AMONG {
            draw = draw.second();
            let prefill = draw.below(prefills.len());
            draw = draw.second();
            let decode = draw.below(decodes.len());
            let busier = waiting_bytes(&prefills[prefill]) > waiting_bytes(&prefills[best.prefill])
                || streams(&decodes[decode]) > streams(&decodes[best.decode]);
            if busier || (prefill, decode) == (best.prefill, best.decode) {
                continue;
            }
            let of_prefill = self.estimator.prefill(&prefills[prefill]);
            let of_decode = self.estimator.decode(&decodes[decode]);
            let pair = self.score((prefill, &of_prefill), (decode, &of_decode));
            if worst.is_none_or(|worst| pair.cost_ms > worst.cost_ms) {
                worst = Some(pair);
            }
        }
        worst
    }
}

/// Bytes that wait at a prefill, of this gateway and, where known, of others.
fn waiting_bytes(prefill: &Candidate) -> f32 {
    prefill.usage.prompt_bytes as f32 + prefill.load.map_or(0.0, |load| load.others_waiting_bytes)
}

/// Streams of a decode, of this gateway and, where known, of others.
fn streams(decode: &Candidate) -> f32 {
    decode.usage.requests as f32 + decode.load.map_or(0.0, |load| load.others_requests)
}

fn decode_cost_ms(
    itl_ms: f32,
    batch_cost_ms: f32,
    output_tokens: f32,
    objective: &Objective,
) -> f32 {
    objective.decode_weight * (itl_ms * output_tokens + batch_cost_ms)
}
