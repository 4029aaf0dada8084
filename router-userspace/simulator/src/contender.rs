//! [`Contender`]: a policy together with the information that its gateways have.

use std::str::FromStr;

use router_core::schedule::Policy;

/// One policy of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub name: &'static str,
    pub(crate) source: InfoSource,
}

/// The information that a choice is made from, besides the gateway's own leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InfoSource {
    /// None: the gateway's leases alone.
    Leases(Policy),
    /// The engines' reports at the last poll, with this poll interval in milliseconds.
    Polled(u32),
    /// The agents' measurements.
    Agents,
    /// The true state of all engines and the true lengths.
    Oracle,
}

impl Contender {
    pub const ALL: [Contender; 10] = [
        Contender { name: "random", source: InfoSource::Leases(Policy::Random) },
        Contender { name: "round_robin", source: InfoSource::Leases(Policy::RoundRobin) },
        Contender { name: "power_of_two", source: InfoSource::Leases(Policy::PowerOfTwo) },
        Contender { name: "least_load", source: InfoSource::Leases(Policy::LeastLoad) },
        Contender { name: "cache_aware", source: InfoSource::Leases(Policy::CacheAware) },
        Contender { name: "reported_1s", source: InfoSource::Polled(1000) },
        Contender { name: "reported_5s", source: InfoSource::Polled(5000) },
        Contender { name: "predicted_alone", source: InfoSource::Leases(Policy::Predicted) },
        Contender { name: "predicted", source: InfoSource::Agents },
        Contender { name: "oracle", source: InfoSource::Oracle },
    ];
}

impl InfoSource {
    pub(crate) fn policy(self) -> Policy {
        match self {
            InfoSource::Leases(policy) => policy,
            InfoSource::Polled(_) => Policy::Reported,
            InfoSource::Agents | InfoSource::Oracle => Policy::Predicted,
        }
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
