//! The scheduler: which prefill and which decode take a request.
//!
//! Plain data in, indices out. Chance, turn and time are arguments, so a choice can be repeated.
//! A policy is one file and one variant of [`Policy`]; [`Policy::Predicted`] alone chooses both
//! legs at once, by the [`Estimate`] of each pair.

mod cache_aware;
mod estimate;
mod gather;
mod held;
mod least_load;
mod policy;
mod power_of_two;
mod predicted;
pub mod prefix;
mod question;
mod random;
mod reported;
mod round_robin;
mod shortlist;
#[cfg(test)]
mod tests;
mod unknown;

pub use estimate::{Assumptions, Estimate, PENALTY_MS, step_us_of_idle};
pub use gather::{ENOUGH, Gathering, Tour, WHOLE};
pub use held::Held;
pub use policy::Policy;
pub use question::{Aim, Ask, Candidate, Chosen, Draw, Patience, Question, Targets};

use crate::pair::Pair;

/// The pair that takes the request, or `None` where a leg has no candidates.
///
/// A policy of single legs chooses a prefill, then a decode of the same group where one has
/// room, else of any.
///
/// ```
/// use router_core::fleet::Usage;
/// use router_core::schedule::{Candidate, Draw, Policy, Question, choose};
///
/// let busy = Usage { requests: 9, prompt_bytes: 90_000, ..Usage::default() };
/// let prefill = [Candidate { usage: busy, ..Default::default() }, Candidate { id: 1, ..Default::default() }];
/// let decode = [Candidate { id: 2, ..Default::default() }];
/// let question = Question::of(&prefill, &decode, Draw { chance: 7, turn: 0 });
/// for policy in [Policy::LeastLoad, Policy::Predicted] {
///     let chosen = choose(policy, &question).unwrap();
///     assert_eq!((chosen.pair.prefill, chosen.pair.decode), (1, 2));
/// }
/// ```
pub fn choose(policy: Policy, question: &Question<'_>) -> Option<Chosen> {
    if policy == Policy::Predicted {
        return predicted::choose(question);
    }
    let Question { ask, candidates: Pair { prefill, decode }, draw, .. } = question;
    let first = &prefill[policy.place(prefill, ask, *draw)?];
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
