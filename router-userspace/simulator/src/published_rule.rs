//! [`PublishedRule`]: rules of other routers, written from their published descriptions.
//!
//! Each prefill has its leases in uncached bytes, as those routers count new tokens. Where a rule is
//! published for one engine that does both legs, prefill takes its terms of the prompt and decode
//! its terms of the batch.

use router_core::pair::Pair;
use router_core::schedule::{Candidate, ChoiceInput, Chosen, Demand, Draw};

/// Weights of llm-d's default profile: queue, KV cache use, prefix.
const QUEUE_WEIGHT: f64 = 2.0;
const KV_WEIGHT: f64 = 2.0;
const PREFIX_WEIGHT: f64 = 3.0;

/// A published rule. The lowest score wins; ties are broken at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublishedRule {
    /// LMetric (arXiv 2603.15202): new prefill tokens, those that wait included, times the batch.
    LMetric,
    /// Dynamo's KV router at its defaults: prefill blocks, active and new, and decode blocks.
    DynamoKv,
    /// llm-d's scorers: shortest queue, least KV cache in use, longest known prefix, each scaled
    /// to 0..1 and weighted 2, 2 and 3.
    LlmD,
}

impl PublishedRule {
    pub(crate) fn choose(self, input: &ChoiceInput<'_>) -> Option<Chosen> {
        let ChoiceInput { demand, candidates: Pair { prefill, decode }, draw, .. } = input;
        let first = lowest(prefill, *draw, self.prefill_scores(prefill, demand))?;
        let second = lowest(decode, draw.second(), self.decode_scores(decode))?;
        Some(Chosen {
            pair: Pair { prefill: first.id, decode: second.id },
            work_bytes: Some(demand.uncached_bytes(first.cache()) as f32),
            estimate: None,
            runner_up: None,
        })
    }

    fn prefill_scores(self, all: &[Candidate], demand: &Demand) -> Vec<f64> {
        let work = |one: &Candidate| waiting_bytes(one) + demand.uncached_bytes(one.cache()) as f64;
        match self {
            // With this request in the batch: else every idle engine scores 0, cached or not.
            PublishedRule::LMetric => {
                all.iter().map(|one| work(one) * (requests(one) + 1.0)).collect()
            }
            PublishedRule::DynamoKv => all.iter().map(work).collect(),
            PublishedRule::LlmD => {
                let prompt = demand.prompt_bytes.max(1) as f64;
                let prefix = |one: &Candidate| {
                    (demand.prefix_match.bytes_of(one.cache()) as f64 / prompt).min(1.0)
                };
                let scores = LlmDScores::of(all);
                all.iter().map(|one| scores.of_one(one) - PREFIX_WEIGHT * prefix(one)).collect()
            }
        }
    }

    fn decode_scores(self, all: &[Candidate]) -> Vec<f64> {
        match self {
            PublishedRule::LMetric => all.iter().map(requests).collect(),
            PublishedRule::DynamoKv => all.iter().map(kv_tokens).collect(),
            PublishedRule::LlmD => {
                let scores = LlmDScores::of(all);
                all.iter().map(|one| scores.of_one(one)).collect()
            }
        }
    }
}

/// The pool's range of queues, which llm-d scales by.
struct LlmDScores {
    shortest: f64,
    range: f64,
    most_tokens: f64,
}

impl LlmDScores {
    fn of(all: &[Candidate]) -> LlmDScores {
        let queues = || all.iter().map(reported_requests);
        let shortest = queues().fold(f64::INFINITY, f64::min);
        let longest = queues().fold(0.0, f64::max);
        let most_tokens = all.iter().map(reported_tokens).fold(1.0, f64::max);
        LlmDScores { shortest, range: (longest - shortest).max(1.0), most_tokens }
    }

    /// Score of queue and KV cache, negated: the lowest wins. A prefill reports no capacity here, so
    /// its tokens are scaled by the pool's maximum.
    fn of_one(&self, one: &Candidate) -> f64 {
        let capacity = match one.limits.kv_tokens {
            u64::MAX => self.most_tokens,
            tokens => tokens as f64,
        };
        let queue = (reported_requests(one) - self.shortest) / self.range;
        QUEUE_WEIGHT * queue + KV_WEIGHT * (reported_tokens(one) / capacity).min(1.0)
    }
}

fn reported_requests(one: &Candidate) -> f64 {
    one.reported.map_or(0.0, |reported| reported.requests as f64)
}

fn reported_tokens(one: &Candidate) -> f64 {
    one.reported.map_or(0.0, |reported| reported.tokens as f64)
}

fn waiting_bytes(one: &Candidate) -> f64 {
    let others = one.load.map_or(0.0, |load| load.others_waiting_bytes);
    one.usage.prompt_bytes as f64 + f64::from(others)
}

fn requests(one: &Candidate) -> f64 {
    one.usage.requests as f64 + one.load.map_or(0.0, |load| f64::from(load.others_requests))
}

fn kv_tokens(one: &Candidate) -> f64 {
    let others = one.load.map_or(0.0, |load| load.others_requests) * one.rates.request_tokens;
    one.usage.kv_tokens as f64 + f64::from(others)
}

/// The candidate with the lowest score; the search starts at a random one, which breaks ties.
fn lowest(all: &[Candidate], draw: Draw, scores: Vec<f64>) -> Option<&Candidate> {
    let start = (draw.chance % all.len().max(1) as u64) as usize;
    let from_start = (start..all.len()).chain(0..start);
    from_start.min_by(|&a, &b| scores[a].total_cmp(&scores[b])).map(|at| &all[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use router_core::fleet::{PolledLoad, Usage};

    fn candidate(id: usize, prompt_bytes: u64, requests: u64) -> Candidate {
        let usage = Usage { prompt_bytes, requests, kv_tokens: prompt_bytes, ..Usage::default() };
        let reported = Some(PolledLoad::excluding(requests, prompt_bytes, Usage::default()));
        Candidate { id, usage, reported, worker: id as u64 + 1, ..Candidate::default() }
    }

    fn chosen(baseline: PublishedRule, prefill: &[Candidate]) -> usize {
        let decode = [candidate(7, 0, 0)];
        let draw = Draw { chance: 5, turn: 0 };
        let demand = Demand { prompt_bytes: 10_000, ..Demand::default() };
        let input = ChoiceInput { demand, ..ChoiceInput::of(prefill, &decode, draw) };
        baseline.choose(&input).unwrap().pair.prefill
    }

    #[test]
    fn lmetric_multiplies_what_dynamo_adds() {
        let many_small = candidate(0, 8_000, 9);
        let one_large = candidate(1, 20_000, 1);
        assert_eq!(chosen(PublishedRule::DynamoKv, &[many_small, one_large]), 0);
        assert_eq!(chosen(PublishedRule::LMetric, &[many_small, one_large]), 1);
    }

    #[test]
    fn llm_d_prefers_the_shortest_reported_queue() {
        assert_eq!(chosen(PublishedRule::LlmD, &[candidate(0, 100, 5), candidate(1, 100, 1)]), 1);
    }
}
