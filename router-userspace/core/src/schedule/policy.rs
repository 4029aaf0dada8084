//! [`Policy`]: the ways to choose, by name.

use std::str::FromStr;

use serde::Serialize;

use super::input::{Candidate, Demand, Draw};
use super::{cache_aware, least_load, power_of_two, random, reported, round_robin};

/// How a worker is chosen. The name is the flag's value.
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

    /// One of `candidates` for a request that takes a single worker, or `None` where there are
    /// none. What is predicted is a pair: for one worker, the load of its leases decides.
    pub fn pick(self, candidates: &[Candidate], draw: Draw) -> Option<usize> {
        self.place(candidates, &Demand::default(), draw).map(|at| candidates[at].id)
    }

    /// The position of the one that takes the prefill leg of `demand`.
    pub(super) fn place(
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

    /// The policy of the decode leg: nothing of a prompt is cached there.
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
    fn names_read_back_and_unknown_ones_are_told_the_choices() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        let error = "fastest".parse::<Policy>().unwrap_err();
        assert!(error.contains("fastest") && error.contains("power_of_two"), "{error}");
    }
}
