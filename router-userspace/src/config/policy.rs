//! The flags of scheduling: a policy and its latency targets.

use std::time::Duration;

use router_core::schedule::{Policy, SloTargets};

/// [`Policy`] as the value of a flag.
#[derive(Clone, Copy, Debug)]
pub struct PolicyName(pub Policy);

impl std::str::FromStr for PolicyName {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyName, String> {
        match text.parse::<Policy>() {
            Ok(policy) if is_served(policy) => Ok(PolicyName(policy)),
            Ok(_) => {
                Err(format!("`{text}` is available only in `pd-router simulate`; {}", choices()))
            }
            // Its own text names those, too.
            Err(_) => Err(format!("no policy is called `{text}`; {}", choices())),
        }
    }
}

/// Whether a gateway has the policy. The others need data that it does not collect.
fn is_served(policy: Policy) -> bool {
    !matches!(policy, Policy::CacheAware | Policy::Reported)
}

/// How the error of a wrong value ends.
fn choices() -> String {
    let served = Policy::ALL.into_iter().filter(|policy| is_served(*policy));
    let names: Vec<&str> = served.map(Policy::as_str).collect();
    format!("it must be one of {}", names.join(", "))
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Converts the flags; a target that no flag sets is infinite.
pub(super) fn targets_of((ttft, itl): (Option<Duration>, Option<Duration>)) -> Option<SloTargets> {
    let ms = |limit: Option<Duration>| limit.map_or(f32::INFINITY, |d| d.as_secs_f32() * 1000.0);
    (ttft.is_some() || itl.is_some()).then(|| SloTargets { ttft_ms: ms(ttft), itl_ms: ms(itl) })
}
