//! [`Contender`]: a policy together with what its gateways can see.

use std::str::FromStr;

use router_core::schedule::Policy;

/// One way of choosing pairs that a simulation compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub name: &'static str,
    pub(crate) way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By what a gateway knows itself.
    Own(Policy),
    /// By what engines told at the last poll; polls are this far apart.
    Polled(u32),
    /// By what agents measure as well.
    Agents,
    /// By the true state and all lengths.
    Oracle,
}

impl Contender {
    pub const ALL: [Contender; 10] = [
        Contender { name: "random", way: Way::Own(Policy::Random) },
        Contender { name: "round_robin", way: Way::Own(Policy::RoundRobin) },
        Contender { name: "power_of_two", way: Way::Own(Policy::PowerOfTwo) },
        Contender { name: "least_load", way: Way::Own(Policy::LeastLoad) },
        Contender { name: "cache_aware", way: Way::Own(Policy::CacheAware) },
        Contender { name: "reported_1s", way: Way::Polled(1000) },
        Contender { name: "reported_5s", way: Way::Polled(5000) },
        Contender { name: "predicted_alone", way: Way::Own(Policy::Predicted) },
        Contender { name: "predicted", way: Way::Agents },
        Contender { name: "oracle", way: Way::Oracle },
    ];
}

impl Way {
    pub(crate) fn policy(self) -> Policy {
        match self {
            Way::Own(policy) => policy,
            Way::Polled(_) => Policy::Reported,
            Way::Agents | Way::Oracle => Policy::Predicted,
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
