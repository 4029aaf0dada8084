//! [`Contender`]: a policy together with the information that its gateways have.

use std::str::FromStr;

use router_core::schedule::{ChoiceInput, Chosen, Policy, choose};

use crate::published_rule::PublishedRule;

/// One policy of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub name: &'static str,
    pub(crate) chooser: Chooser,
    pub(crate) source: InfoSource,
}

/// What chooses the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chooser {
    /// A policy of the product.
    Policy(Policy),
    /// A published rule of another router.
    Published(PublishedRule),
    /// The true costs.
    Oracle,
}

/// The information that a choice is made from, besides the gateway's own leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InfoSource {
    /// None: the gateway's leases alone.
    Leases,
    /// The engines' reports at the last poll, with this poll interval in milliseconds.
    Polled(u32),
    /// The agents' measurements.
    Agents,
    /// The true state of all engines and the true lengths.
    Truth,
}

const fn policy(name: &'static str, policy: Policy, source: InfoSource) -> Contender {
    Contender { name, chooser: Chooser::Policy(policy), source }
}

const fn baseline(name: &'static str, baseline: PublishedRule, source: InfoSource) -> Contender {
    Contender { name, chooser: Chooser::Published(baseline), source }
}

impl Contender {
    pub const ALL: [Contender; 15] = [
        policy("random", Policy::Random, InfoSource::Leases),
        policy("round_robin", Policy::RoundRobin, InfoSource::Leases),
        policy("power_of_two", Policy::PowerOfTwo, InfoSource::Leases),
        policy("least_load", Policy::LeastLoad, InfoSource::Leases),
        policy("cache_aware", Policy::CacheAware, InfoSource::Leases),
        policy("reported_1s", Policy::Reported, InfoSource::Polled(1000)),
        policy("reported_5s", Policy::Reported, InfoSource::Polled(5000)),
        // llm-d's endpoint picker refreshes metrics every 50 ms.
        baseline("llm_d", PublishedRule::LlmD, InfoSource::Polled(50)),
        baseline("dynamo_kv", PublishedRule::DynamoKv, InfoSource::Agents),
        baseline("lmetric", PublishedRule::LMetric, InfoSource::Agents),
        policy("kv_alone", Policy::Kv, InfoSource::Leases),
        policy("kv", Policy::Kv, InfoSource::Agents),
        policy("predicted_alone", Policy::Predicted, InfoSource::Leases),
        policy("predicted", Policy::Predicted, InfoSource::Agents),
        Contender { name: "oracle", chooser: Chooser::Oracle, source: InfoSource::Truth },
    ];

    pub(crate) fn choose(self, input: &ChoiceInput<'_>) -> Option<Chosen> {
        match self.chooser {
            Chooser::Policy(policy) => choose(policy, input),
            Chooser::Published(baseline) => baseline.choose(input),
            Chooser::Oracle => None,
        }
    }

    /// Whether a random sample of a large pool is enough, as in a real gateway.
    pub(crate) fn samples(self) -> bool {
        matches!(self.chooser, Chooser::Policy(policy) if policy.samples())
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Contender, String> {
        let known = Contender::ALL.into_iter().find(|contender| contender.name == text);
        known.ok_or_else(|| {
            let names = Contender::ALL.map(|contender| contender.name).join(", ");
            format!("unknown policy `{text}`; the policies are {names}")
        })
    }
}
