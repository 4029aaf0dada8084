//! The scheduler: which prefill and which decode take a request.
//!
//! Plain data in, indices out. Chance, turn and time are arguments, so a choice can be repeated.
//! A policy is one file and one variant of [`Policy`]; [`Policy::Predicted`] alone chooses both
//! legs at once, by the [`Estimate`] of each pair.

mod cache_aware;
mod candidate_set;
mod estimate;
mod fallback_load;
mod input;
mod least_load;
mod policy;
mod power_of_two;
mod predicted;
pub mod prefix;
mod prefix_match;
mod random;
mod reported;
mod round_robin;
mod shortlist;
#[cfg(test)]
mod tests;

pub use candidate_set::{CandidateSet, FULL_SCAN_LIMIT, SAMPLE_SIZE, SampleOrder};
pub use estimate::{Assumptions, Estimate, PENALTY_MS, step_us_of_idle};
pub use input::{AgentTrust, Candidate, ChoiceInput, Chosen, Demand, Draw, Objective, SloTargets};
pub use policy::Policy;
pub use prefix_match::PrefixMatch;

use crate::pair::Pair;

/// The pair that takes the request, or `None` where a leg has no candidates.
///
/// A policy of single legs chooses a prefill, then a decode of the same group where one has
/// room, else of any.
///
/// ```
/// use router_core::fleet::Usage;
/// use router_core::schedule::{Candidate, Draw, Policy, ChoiceInput, choose};
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
    let first = &prefill[policy.place(prefill, demand, *draw)?];
    let (policy, second) = (policy.of_decode(), draw.second());
    let mates = || decode.iter().filter(|mate| first.group != 0 && mate.group == first.group);
    let decode = if mates().next().is_some() && mates().count() < decode.len() {
        let mates: Vec<Candidate> = mates().copied().collect();
        policy.pick(&mates, second)?
    } else {
        policy.pick(decode, second)?
    };
    let pair = Pair { prefill: first.id, decode };
    Some(Chosen { pair, estimate: None, runner_up: None, explored: false })
}

/// All positions, from a random one on: ties are so broken evenly, and several gateways do not
/// all run to the same worker.
fn walk(candidates: &[Candidate], draw: Draw) -> impl Iterator<Item = usize> + use<> {
    let start = draw.below(candidates.len());
    (start..candidates.len()).chain(0..start)
}
