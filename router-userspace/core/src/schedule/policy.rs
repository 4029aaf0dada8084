//! [`Policy`]: the scheduling policies, by name.

use std::str::FromStr;

use serde::Serialize;

use super::candidate::Candidate;
use super::demand::Demand;
use super::draw::Draw;
use super::{cache_aware, least_load, power_of_two, random, reported, round_robin};

/// How workers are chosen. The name is the value of the flag `--policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    RoundRobin,
    Random,
    PowerOfTwo,
    LeastLoad,
    CacheAware,
    Reported,
    #[default]
    Predicted,
}

impl Policy {
    pub const ALL: [Policy; 7] = [
        Policy::RoundRobin,
        Policy::Random,
        Policy::PowerOfTwo,
        Policy::LeastLoad,
        Policy::CacheAware,
        Policy::Reported,
        Policy::Predicted,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round_robin",
            Policy::Random => "random",
            Policy::PowerOfTwo => "power_of_two",
            Policy::LeastLoad => "least_load",
            Policy::CacheAware => "cache_aware",
            Policy::Reported => "reported",
            Policy::Predicted => "predicted",
        }
    }

    /// Returns one of `candidates` for a request that one worker serves alone, or `None` if there are
    /// none. [`Policy::Predicted`] predicts pairs only; for one worker it falls back to the least load.
    pub fn pick(self, candidates: &[Candidate], draw: Draw) -> Option<usize> {
        self.position(candidates, &Demand::default(), draw).map(|at| candidates[at].id)
    }

    /// Returns the position of the candidate that serves the prefill leg of `demand`.
    pub(super) fn position(
        self,
        candidates: &[Candidate],
        demand: &Demand,
        draw: Draw,
    ) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        Some(match self {
            Policy::RoundRobin => round_robin::pick(candidates, draw),
            Policy::Random => random::pick(candidates, draw),
            Policy::PowerOfTwo => power_of_two::pick(candidates, draw),
            Policy::LeastLoad | Policy::Predicted => least_load::pick(candidates, draw),
            Policy::CacheAware => {
                cache_aware::pick(candidates, &demand.prefix_match, demand.prompt_bytes, draw)
            }
            Policy::Reported => reported::pick(candidates, draw),
        })
    }

    /// The policy of the decode leg, which has no prefix cache.
    pub(super) fn of_decode(self) -> Policy {
        if self == Policy::CacheAware { Policy::PowerOfTwo } else { self }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_an_unknown_name_lists_the_choices() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        let error = "fastest".parse::<Policy>().unwrap_err();
        assert!(error.contains("fastest") && error.contains("power_of_two"), "{error}");
    }
}
