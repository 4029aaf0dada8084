//! The flags of scheduling: a policy and its latency targets.

use std::time::Duration;

use router_core::schedule::{Policy, SloTargets};

/// How the error of a wrong value ends.
const POLICIES: &str = "it must be round_robin, random, power_of_two, least_load, kv or predicted";

/// [`Policy`] as the value of a flag.
#[derive(Clone, Copy, Debug)]
pub struct PolicyName(pub Policy);

impl std::str::FromStr for PolicyName {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyName, String> {
        match text.parse() {
            // They need data that the gateway does not collect.
            Ok(Policy::CacheAware | Policy::Reported) => {
                Err(format!("`{text}` is available only in `pd-router simulate`; {POLICIES}"))
            }
            Ok(policy) => Ok(PolicyName(policy)),
            // Its own text names those, too.
            Err(_) => Err(format!("no policy is called `{text}`; {POLICIES}")),
        }
    }
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
