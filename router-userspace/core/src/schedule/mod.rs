//! The scheduler: which prefill and which decode take a request.
//!
//! Plain data in, indices out. Chance and turn are arguments, so a choice can be repeated.

mod least_load;
mod power_of_two;
mod random;
mod round_robin;

use std::str::FromStr;

use serde::Serialize;

use crate::fleet::Usage;
use crate::pair::Pair;

/// A worker that could take the request: eligible, and with room for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// What the caller knows the worker by; handed back by [`choose`].
    pub id: usize,
    pub usage: Usage,
    /// Pods of one group are preferred for each other. `0` is no group.
    pub group: u64,
}

/// Chance and turn for one choice.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Uniform over all of `u64`, fresh for each choice.
    pub chance: u64,
    /// Counts the choices made so far.
    pub turn: u64,
}

impl Draw {
    /// The draw of the second leg: as random as the first, and independent of it.
    fn second(self) -> Draw {
        // The finaliser of splitmix64 (Steele, Lea, Flood 2014) turns one draw into another.
        let mut z = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Draw { chance: z ^ (z >> 31), turn: self.turn }
    }

    /// A number in `0..n`, by the high bits. `n` must not be 0.
    fn below(self, n: usize) -> usize {
        ((u128::from(self.chance) * n as u128) >> 64) as usize
    }
}

/// How a worker is chosen. The name is the flag's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    RoundRobin,
    Random,
    PowerOfTwo,
    #[default]
    LeastLoad,
}

impl Policy {
    pub const ALL: [Policy; 4] =
        [Policy::RoundRobin, Policy::Random, Policy::PowerOfTwo, Policy::LeastLoad];

    pub fn as_str(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round_robin",
            Policy::Random => "random",
            Policy::PowerOfTwo => "power_of_two",
            Policy::LeastLoad => "least_load",
        }
    }

    /// One of `candidates`, or `None` where there are none.
    pub fn pick(self, candidates: &[Candidate], draw: Draw) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        let at = match self {
            Policy::RoundRobin => round_robin::pick(candidates, draw),
            Policy::Random => random::pick(candidates, draw),
            Policy::PowerOfTwo => power_of_two::pick(candidates, draw),
            Policy::LeastLoad => least_load::pick(candidates, draw),
        };
        Some(candidates[at].id)
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        let known = Policy::ALL.into_iter().find(|policy| policy.as_str() == text);
        known.ok_or_else(|| {
            let names = Policy::ALL.map(Policy::as_str).join(", ");
            format!("unknown policy `{text}`; the policies are {names}")
        })
    }
}

/// The pair that takes the request: a prefill by `policy`, then a decode of the same group
/// where one has room, else of any.
///
/// ```
/// use router_core::fleet::Usage;
/// use router_core::schedule::{Candidate, Draw, Policy, choose};
///
/// let busy = Usage { requests: 9, prompt_bytes: 90_000, kv_tokens: 0 };
/// let prefill = [Candidate { id: 0, usage: busy, group: 0 }, Candidate { id: 1, ..Default::default() }];
/// let decode = [Candidate { id: 2, ..Default::default() }];
/// let pair = choose(Policy::LeastLoad, &prefill, &decode, Draw { chance: 7, turn: 0 }).unwrap();
/// assert_eq!((pair.prefill, pair.decode), (1, 2));
/// ```
pub fn choose(
    policy: Policy,
    prefill: &[Candidate],
    decode: &[Candidate],
    draw: Draw,
) -> Option<Pair<usize>> {
    let first = policy.pick(prefill, draw)?;
    let group = prefill.iter().find(|candidate| candidate.id == first).map_or(0, |c| c.group);
    let second = draw.second();
    let mates = || decode.iter().filter(|candidate| group != 0 && candidate.group == group);
    let decode = if mates().next().is_some() && mates().count() < decode.len() {
        let mates: Vec<Candidate> = mates().copied().collect();
        policy.pick(&mates, second)?
    } else {
        policy.pick(decode, second)?
    };
    Some(Pair { prefill: first, decode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(id: usize, group: u64) -> Candidate {
        Candidate { id, group, ..Candidate::default() }
    }

    fn draws() -> impl Iterator<Item = Draw> {
        (0..1000).scan(Draw { chance: 1, turn: 0 }, |draw, turn| {
            *draw = Draw { turn, ..draw.second() };
            Some(*draw)
        })
    }

    #[test]
    fn every_policy_reaches_every_idle_worker() {
        let all = [idle(0, 0), idle(1, 0), idle(2, 0)];
        for policy in Policy::ALL {
            let mut seen = [0; 3];
            for draw in draws() {
                seen[policy.pick(&all, draw).unwrap()] += 1;
            }
            assert!(seen.iter().all(|&count| count > 250), "{policy:?}: {seen:?}");
        }
    }

    #[test]
    fn a_decode_of_the_same_group_is_preferred_and_any_other_taken_without_one() {
        for draw in draws() {
            let pair =
                choose(Policy::Random, &[idle(0, 7)], &[idle(1, 8), idle(2, 7), idle(3, 0)], draw);
            assert_eq!(pair, Some(Pair { prefill: 0, decode: 2 }));
            let pair = choose(Policy::Random, &[idle(0, 7)], &[idle(1, 8)], draw);
            assert_eq!(pair, Some(Pair { prefill: 0, decode: 1 }));
        }
    }

    #[test]
    fn nobody_to_choose_from_is_no_choice() {
        let draw = Draw { chance: 3, turn: 0 };
        assert_eq!(choose(Policy::LeastLoad, &[idle(0, 0)], &[], draw), None);
        assert_eq!(choose(Policy::LeastLoad, &[], &[idle(0, 0)], draw), None);
    }

    #[test]
    fn names_read_back_and_unknown_ones_are_told_the_choices() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        let error = "fastest".parse::<Policy>().unwrap_err();
        assert!(error.contains("fastest") && error.contains("power_of_two"), "{error}");
    }
}
