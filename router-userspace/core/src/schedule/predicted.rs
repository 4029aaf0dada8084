//! Predicted: the pair with the fewest predicted milliseconds, over both legs at once.
//!
//! Each leg is scored alone, which is linear; the best few of each are then tried with each
//! other, since only what a pair shares, the link, is not known from the legs.

use super::estimate::{DecodeTerms, Estimate, Estimator, PrefillTerms};
use super::fallback_load::FallbackLoad;
use super::input::{Candidate, ChoiceInput, Chosen, Draw, Objective};
use super::shortlist::Shortlist;
use crate::pair::Pair;

/// One request in so many is sent where it may learn something.
const EXPLORE_ONE_IN: usize = 100;
/// Pairs that are drawn for it.
const EXPLORE_AMONG: usize = 8;
/// Pairs whose TTFT differs by less than this from the best one's are as good: a part of it,
/// and at least a millisecond. One of them is taken at random, so that gateways do not herd.
const TIE_SHARE: f32 = 0.01;
const TIE_MS: f32 = 1.0;
/// What pods of one group are preferred by, where the rest is the same.
const GROUP_MS: f32 = 2.0;
/// Of the requests that wait, so many as will be delayed by work that a cached prefix saves.
const PRESSURE: f32 = 0.5;
const MOST_PRESSURE: f32 = 10.0;
/// Candidates that a mean is taken over.
const MOST_SAMPLES: usize = 64;
/// A pair that misses a target is worse than any that does not.
const MISS_MS: f32 = 1e6;

#[derive(Clone, Copy, Debug)]
struct Scored {
    prefill: usize,
    decode: usize,
    cost_ms: f32,
    estimate: Estimate,
}

struct Scene<'a> {
    input: &'a ChoiceInput<'a>,
    estimator: Estimator<'a>,
}

pub(super) fn choose(input: &ChoiceInput<'_>) -> Option<Chosen> {
    let Pair { prefill, decode } = input.candidates;
    if prefill.is_empty() || decode.is_empty() {
        return None;
    }
    let scene = Scene { input, estimator: estimator(input) };
    let first = input.draw.second();
    let second = first.second();
    let prefills = Shortlist::of(prefill, first, |candidate, bar| scene.prefill_ms(candidate, bar));
    let decodes = Shortlist::of(decode, second, |candidate, bar| scene.decode_ms(candidate, bar));
    let (best, runner_up) = scene.best(&prefills, &decodes, second.second())?;
    let explored = scene.explore(&best, second.second().second());
    let taken = explored.unwrap_or(best);
    let ids =
        |pair: &Scored| Pair { prefill: prefill[pair.prefill].id, decode: decode[pair.decode].id };
    let beaten = if explored.is_some() { Some(best) } else { runner_up };
    Some(Chosen {
        pair: ids(&taken),
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
        typical: Pair { prefill: FallbackLoad::of(prefill), decode: FallbackLoad::of(decode) },
        pressure: pressure(prefill),
        others_waiting_bytes: mean(prefill, |candidate| {
            candidate.load.map_or(0.0, |load| load.others_waiting_bytes)
        }),
        rendezvous: input.demand.rendezvous(prefill.iter().map(Candidate::cache), |_| true),
    }
}

/// What a millisecond of prefill costs those who come later: the more, the longer the queues.
fn pressure(prefills: &[Candidate]) -> f32 {
    let requests = mean(prefills, |candidate| {
        let others = candidate.load.map_or(0.0, |load| load.others_requests);
        candidate.usage.requests as f32 + others
    });
    (PRESSURE * requests).clamp(0.0, MOST_PRESSURE)
}

/// Over some of the candidates, spread evenly.
fn mean(candidates: &[Candidate], of: impl Fn(&Candidate) -> f32) -> f32 {
    let stride = candidates.len().div_ceil(MOST_SAMPLES).max(1);
    let sum: f32 = candidates.iter().step_by(stride).map(of).sum();
    sum / candidates.len().div_ceil(stride) as f32
}

impl Scene<'_> {
    /// What a prefill costs with a decode that takes all it can send.
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

    /// What a decode costs, its whole share in the transfer included.
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

    /// The best of the listed pairs, near-ties broken by `draw`, and the next best.
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
        let mut of_decode = [DecodeTerms::default(); Shortlist::MOST];
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

    /// Now and then, a pair that looks bad and has no more to do than the best one: what speaks
    /// against it was once measured, and an avoided worker or link tells nothing new. Of some drawn
    /// at random the worst is tried, and nobody waits behind a longer queue for it.
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
            let busier = work(&prefills[prefill]) > work(&prefills[best.prefill])
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

/// What waits at a prefill and what a decode has, ours and, as far as it is known, everybody's.
fn work(prefill: &Candidate) -> f32 {
    prefill.usage.prompt_bytes as f32 + prefill.load.map_or(0.0, |load| load.others_waiting_bytes)
}

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
