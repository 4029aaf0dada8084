//! Predicted: the pair with the lowest predicted cost in milliseconds, over both legs.
//!
//! It is the rule of [`super::kv`] in milliseconds: what waits, and the new prompt twice, at the
//! speed of each worker where that is known to differ from its pool's. Each leg is scored alone,
//! which is linear. The best few of each leg are then combined: only the link and the group depend
//! on both.

use super::candidate::Candidate;
use super::draw::Draw;
use super::estimate::{DecodeTerms, Estimate, Estimator, PrefillTerms};
use super::fallback_load::FallbackLoad;
use super::input::{ChoiceInput, Chosen};
use super::shortlist::Shortlist;
use crate::pair::Pair;

/// Cost added to a pair whose pods are of different groups.
const GROUP_MS: f32 = 2.0;
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
    let prefills =
        Shortlist::of(prefill, first, |candidate, bar| scorer.prefill_ms(candidate, bar));
    let decodes =
        Shortlist::of(decode, first.second(), |candidate, bar| scorer.decode_ms(candidate, bar));
    let (best, runner_up) = scorer.best(&prefills, &decodes, first.second().second())?;
    let ids =
        |pair: &Scored| Pair { prefill: prefill[pair.prefill].id, decode: decode[pair.decode].id };
    Some(Chosen {
        pair: ids(&best),
        work_bytes: Some(best.estimate.work_bytes),
        estimate: Some(best.estimate),
        runner_up: runner_up.map(|other| (ids(&other), other.estimate)),
    })
}

fn estimator<'a>(input: &'a ChoiceInput<'a>) -> Estimator<'a> {
    let Pair { prefill, decode } = input.candidates;
    Estimator {
        demand: &input.demand,
        per_context: input.tuning.context / input.assumptions.context_doubles_bytes,
        per_batch: 1.0 / input.assumptions.batch_doubles_tokens,
        fallback: Pair { prefill: FallbackLoad::of(prefill), decode: FallbackLoad::of(decode) },
        tuning: input.tuning,
        others_share: others_share(decode),
        owner: input.demand.owner(prefill.iter().map(Candidate::cache), |_| true),
    }
}

/// Share of the streams at the decodes that are other gateways', as agents measure them.
fn others_share(decodes: &[Candidate]) -> f32 {
    let (mut own, mut others) = (0.0, 0.0);
    for candidate in decodes {
        own += candidate.usage.requests as f32;
        others += candidate.load.map_or(0.0, |load| load.others_requests);
    }
    if others > 0.0 { others / (own + others) } else { 0.0 }
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
        let terms = self.estimator.decode(candidate);
        let cost_ms = terms.admission_ms + self.decode_cost_ms(&terms, candidate);
        if cost_ms >= bar {
            return cost_ms;
        }
        let bytes = self.input.demand.prompt_bytes as f32 * candidate.rates.kv_bytes_per_byte;
        cost_ms + bytes / terms.rx_bytes_per_ms
    }

    /// Cost of the response: a step for each of its tokens, longer with the KV tokens of the batch.
    fn decode_cost_ms(&self, terms: &DecodeTerms, candidate: &Candidate) -> f32 {
        let weight = self.input.objective.decode_weight;
        weight * terms.itl_ms * candidate.rates.output_tokens + terms.penalty_ms
    }

    /// Returns the best of the listed pairs and the next best. Equal pairs are taken from a random
    /// one on.
    fn best(
        &self,
        prefills: &Shortlist,
        decodes: &Shortlist,
        draw: Draw,
    ) -> Option<(Scored, Option<Scored>)> {
        let mut best: Option<Scored> = None;
        let mut next: Option<Scored> = None;
        let Pair { prefill: all, decode: mates } = self.input.candidates;
        let mut of_decode = [DecodeTerms::default(); Shortlist::MAX];
        for (terms, decode) in of_decode.iter_mut().zip(decodes.iter()) {
            *terms = self.estimator.decode(&mates[decode]);
        }
        let grouped = self.best_of_groups(prefills, draw);
        for (prefill, mate) in prefills.iter().zip(grouped) {
            let of_prefill = self.estimator.prefill(&all[prefill]);
            let listed = decodes.iter().zip(of_decode);
            let mate = mate.map(|decode| (decode, self.estimator.decode(&mates[decode])));
            for (decode, of_decode) in listed.chain(mate) {
                let pair = self.score((prefill, &of_prefill), (decode, &of_decode));
                let is_listed = |other: Scored| (other.prefill, other.decode) == (prefill, decode);
                if best.is_some_and(is_listed) || next.is_some_and(is_listed) {
                    continue;
                }
                if best.is_none_or(|best| pair.cost_ms < best.cost_ms) {
                    (best, next) = (Some(pair), best);
                } else if next.is_none_or(|next| pair.cost_ms < next.cost_ms) {
                    next = Some(pair);
                }
            }
        }
        best.map(|best| (best, next))
    }

    /// Returns the best decode of each listed prefill's group. In a large pool it is seldom among
    /// the best of all.
    fn best_of_groups(&self, prefills: &Shortlist, draw: Draw) -> [Option<usize>; Shortlist::MAX] {
        let Pair { prefill: all, decode: mates } = self.input.candidates;
        let mut groups = [0; Shortlist::MAX];
        for (group, prefill) in groups.iter_mut().zip(prefills.iter()) {
            *group = all[prefill].group;
        }
        let mut best = [(f32::INFINITY, None); Shortlist::MAX];
        if groups == [0; Shortlist::MAX] {
            return [None; Shortlist::MAX];
        }
        for decode in draw.positions(mates.len()) {
            let mate = &mates[decode];
            for (group, best) in groups.iter().zip(&mut best) {
                if *group != 0 && *group == mate.group {
                    let cost_ms = self.decode_ms(mate, best.0);
                    if cost_ms < best.0 || best.1.is_none() {
                        *best = (cost_ms, Some(decode));
                    }
                }
            }
        }
        best.map(|(_, decode)| decode)
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
        let missed = objective.targets.map_or(0, |targets| {
            u8::from(estimate.ttft_ms() > targets.ttft_ms)
                + u8::from(estimate.itl_ms > targets.itl_ms)
        });
        let cost_ms = estimate.first_leg_ms()
            + self.decode_cost_ms(of_decode, d)
            + if apart { GROUP_MS } else { 0.0 }
            + f32::from(missed) * MISS_MS;
        Scored { prefill, decode, cost_ms, estimate }
    }
}
