//! The scheduler: which prefill and which decode take a request.
//!
//! The input is plain data and the output are indices. Randomness, turn and time are arguments, so a
//! choice can be repeated. A policy is one file and one variant of [`Policy`]. Only
//! [`Policy::Predicted`] chooses both legs at once, by the [`Estimate`] of each pair.

mod assumptions;
mod cache_aware;
mod candidate;
mod candidate_set;
mod demand;
mod draw;
mod estimate;
mod fallback_load;
mod input;
mod kv;
mod least_load;
mod policy;
mod power_of_two;
mod predicted;
mod prefix_blocks;
mod prefix_index;
mod prefix_match;
mod random;
mod reported;
mod round_robin;
mod shortlist;
#[cfg(test)]
mod tests;
mod tuning;

pub use assumptions::{Assumptions, step_us_of_idle};
pub use candidate::{AgentTrust, Candidate};
pub use candidate_set::{CandidateSet, FULL_SCAN_LIMIT, SAMPLE_SIZE, SampleOrder};
pub use demand::Demand;
pub use draw::Draw;
pub use estimate::Estimate;
pub use input::{ChoiceInput, Chosen, Objective, SloTargets};
pub use policy::Policy;
pub use prefix_blocks::{BLOCK_BYTES, BlockHasher, KEY_BYTES, MAX_BLOCKS, prefix_key};
pub use prefix_index::{IndexCapacity, PrefixIndex};
pub use prefix_match::PrefixMatch;
pub use tuning::{Tuning, TuningField};

use crate::pair::Pair;

/// Returns the pair that serves the request, or `None` if a leg has no candidates.
///
/// Every policy but [`Policy::Predicted`] chooses a prefill, then a decode among the candidates of
/// the same group, or among all if the group has none.
///
/// ```
/// use router_core::fleet::Usage;
/// use router_core::schedule::{Candidate, ChoiceInput, Draw, Policy, choose};
///
/// let busy = Usage { requests: 9, prompt_bytes: 90_000, ..Usage::default() };
/// let prefill = [Candidate { usage: busy, ..Default::default() }, Candidate { id: 1, ..Default::default() }];
/// let decode = [Candidate { id: 2, ..Default::default() }];
/// let input = ChoiceInput::of(&prefill, &decode, Draw { chance: 7, turn: 0 });
/// for policy in [Policy::LeastLoad, Policy::Predicted] {
///     let chosen = choose(policy, &input).unwrap();
///     assert_eq!((chosen.pair.prefill, chosen.pair.decode), (1, 2));
/// }
/// ```
pub fn choose(policy: Policy, input: &ChoiceInput<'_>) -> Option<Chosen> {
    if policy == Policy::Predicted {
        return predicted::choose(input);
    }
    let ChoiceInput { demand, candidates: Pair { prefill, decode }, draw, .. } = input;
    let first = &prefill[policy.position(prefill, demand, *draw)?];
    let work_bytes = (policy == Policy::Kv).then(|| demand.uncached_bytes(first.cache()) as f32);
    let (policy, second) = (policy.of_decode(), draw.second());
    let mates = || decode.iter().filter(|mate| first.group != 0 && mate.group == first.group);
    let decode = if mates().next().is_some() && mates().count() < decode.len() {
        let mates: Vec<Candidate> = mates().copied().collect();
        policy.pick_decode(&mates, second)?
    } else {
        policy.pick_decode(decode, second)?
    };
    let pair = Pair { prefill: first.id, decode };
    Some(Chosen { pair, work_bytes, estimate: None, runner_up: None })
}
