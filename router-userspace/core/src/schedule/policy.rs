//! [`Policy`]: the scheduling policies, by name.

use std::str::FromStr;

use serde::Serialize;

use super::candidate::Candidate;
use super::demand::Demand;
use super::draw::Draw;
use super::{cache_aware, kv, least_load, power_of_two, random, reported, round_robin};

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
    Kv,
    #[default]
    Predicted,
}

impl Policy {
    pub const ALL: [Policy; 8] = [
        Policy::RoundRobin,
        Policy::Random,
        Policy::PowerOfTwo,
        Policy::LeastLoad,
        Policy::CacheAware,
        Policy::Reported,
        Policy::Kv,
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
            Policy::Kv => "kv",
            Policy::Predicted => "predicted",
        }
    }

    /// Returns one of `candidates` for a request that one worker serves alone, or `None` if there are
    /// none. [`Policy::Kv`] and [`Policy::Predicted`] choose pairs only; for one worker they fall back to the
    /// least load.
    pub fn pick(self, candidates: &[Candidate], draw: Draw) -> Option<usize> {
        let alone = if self == Policy::Kv { Policy::LeastLoad } else { self };
        alone.position(candidates, &Demand::default(), draw).map(|at| candidates[at].id)
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
            Policy::Kv => kv::pick_prefill(candidates, demand, draw),
        })
    }

    /// Whether the policy reads where prompts are cached.
    pub fn uses_prefixes(self) -> bool {
        matches!(self, Policy::CacheAware | Policy::Kv | Policy::Predicted)
    }

    /// Whether the policy reads the loads that agents and engines report of prefills.
    pub fn uses_loads(self) -> bool {
        matches!(self, Policy::Reported | Policy::Kv | Policy::Predicted)
    }

    /// Whether a random sample of a large pool is enough: the policy's cost is a total order, and it
    /// needs neither turns nor counts of the whole pool.
    pub fn samples(self) -> bool {
        matches!(self, Policy::Kv | Policy::Predicted)
    }

    /// Returns the [`Candidate::id`] of the decode leg, or `None` if there are no candidates.
    pub(super) fn pick_decode(self, candidates: &[Candidate], draw: Draw) -> Option<usize> {
        match self {
            Policy::Kv if candidates.is_empty() => None,
            Policy::Kv => Some(candidates[kv::pick_decode(candidates, draw)].id),
            policy => policy.pick(candidates, draw),
        }
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
