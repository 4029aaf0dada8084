//! KV: the least uncached prompt bytes, waiting and new; the rule that `predicted` must beat.
//!
//! It knows what a gateway knows and assumes no rates or times of engines. One quantity is learned:
//! the KV tokens of a mean request, by which others' requests are counted. No constant was fitted to
//! it: 0.8 and 0.5 are those that the first `predicted` had, and 2 is a prompt's delay to itself and
//! to the next.

use super::candidate::Candidate;
use super::demand::Demand;
use super::draw::Draw;

/// Share of the bytes of other gateways' waiting prompts that is assumed to be uncached.
const OTHERS_UNCACHED: f32 = 0.8;
/// A byte of the new prompt counts this many times: it delays itself and the prompts behind it.
const NEW_WEIGHT: f32 = 2.0;
/// Share of the new prompt that is assumed to be cached where the rendezvous hash names the worker.
const RENDEZVOUS_CACHED: f32 = 0.5;

/// Position of the prefill with the lowest cost in bytes.
pub(super) fn pick_prefill(candidates: &[Candidate], demand: &Demand, draw: Draw) -> usize {
    let named = demand.rendezvous(candidates.iter().map(Candidate::cache), |_| true);
    let cost = |at: &usize| {
        let candidate = &candidates[*at];
        let fresh = candidate.load.filter(|load| !load.is_stale());
        let others = fresh.map_or(0.0, |load| load.others_waiting_bytes);
        let is_named = named == Some(candidate.cache());
        let new = demand.uncached_bytes(candidate.cache()) as f32
            * if is_named { 1.0 - RENDEZVOUS_CACHED } else { 1.0 };
        candidate.usage.prompt_bytes as f32 + OTHERS_UNCACHED * others + NEW_WEIGHT * new
    };
    lowest(candidates.len(), draw, cost)
}

/// Position of the decode with the fewest KV tokens.
pub(super) fn pick_decode(candidates: &[Candidate], draw: Draw) -> usize {
    lowest(candidates.len(), draw, |at| {
        let candidate = &candidates[*at];
        let fresh = candidate.load.filter(|load| !load.is_stale());
        let others = fresh.map_or(0.0, |load| load.others_requests);
        candidate.usage.kv_tokens as f32 + others * candidate.rates.request_tokens
    })
}

fn lowest(len: usize, draw: Draw, cost: impl Fn(&usize) -> f32) -> usize {
    draw.positions(len).min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Load, Usage};

    const DRAW: Draw = Draw { chance: 9, turn: 0 };

    fn candidate(worker: u64, prompt_bytes: u64, others_waiting_bytes: f32) -> Candidate {
        let usage = Usage { prompt_bytes, ..Usage::default() };
        let load = Some(Load { others_waiting_bytes, ..Load::default() });
        Candidate { worker, usage, load, ..Candidate::default() }
    }

    #[test]
    fn a_cached_prompt_outweighs_twice_its_bytes_of_queue() {
        let mut demand = Demand { prompt_bytes: 20_480, ..Demand::default() };
        demand.prefix_match.record(2, 10);
        let behind = |waiting| [candidate(1, 0, 0.0), candidate(2, waiting, 0.0)];
        assert_eq!(pick_prefill(&behind(40_000), &demand, DRAW), 1);
        assert_eq!(pick_prefill(&behind(41_000), &demand, DRAW), 0);
    }

    #[test]
    fn others_count_less_than_own_bytes_and_not_once_they_are_stale() {
        let demand = Demand { prompt_bytes: 1000, ..Demand::default() };
        let mut both = [candidate(1, 8_500, 0.0), candidate(2, 0, 10_000.0)];
        assert_eq!(pick_prefill(&both, &demand, DRAW), 1);
        both[1].load.as_mut().unwrap().others_waiting_bytes = 11_000.0;
        assert_eq!(pick_prefill(&both, &demand, DRAW), 0);
        both[1].load.as_mut().unwrap().age_ms = f32::INFINITY;
        assert_eq!(pick_prefill(&both, &demand, DRAW), 1);
    }

    #[test]
    fn the_rendezvous_hash_names_one_of_idle_workers_and_the_queue_outweighs_it() {
        let demand = Demand { prompt_bytes: 10_000, prefix_key: 77, ..Demand::default() };
        let mut all: Vec<Candidate> = (1..9).map(|worker| candidate(worker, 0, 0.0)).collect();
        let named = pick_prefill(&all, &demand, DRAW);
        assert_eq!(pick_prefill(&all, &demand, DRAW.second()), named);
        all[named].usage.prompt_bytes = 10_001;
        assert_ne!(pick_prefill(&all, &demand, DRAW), named);
    }

    #[test]
    fn decode_has_the_fewest_tokens_of_all_gateways() {
        let mut both = [candidate(1, 0, 0.0), candidate(2, 0, 0.0)];
        both[0].usage.kv_tokens = 7_000;
        both[1].load.as_mut().unwrap().others_requests = 1.0;
        assert_eq!(pick_decode(&both, DRAW), 0, "a request of others counts 8,000 tokens");
    }
}
