//! Decode allocation policies of a pool's engines, which prefill and decode must share.

use std::collections::{BTreeMap, HashSet};

use super::{Pool, Role};

/// Maximum number of workers that a text names.
const MAX_NAMED: usize = 4;

impl Pool {
    /// Why engines are not paired because of `--disaggregation-decode-allocation-policy`. `None` if each
    /// policy has engines of both roles, or is not reported. An engine that is paired with one that
    /// reports no policy is not named.
    pub fn allocation_mismatch(&self) -> Option<String> {
        let mut policies: BTreeMap<&str, [Vec<&str>; 2]> = BTreeMap::new();
        for member in self.members.iter().filter(|member| member.contradiction().is_none()) {
            let info = member.engine_info.as_deref();
            let policy = info.and_then(|info| info.decode_allocation_policy.as_deref());
            let leg = match member.role {
                Role::Prefill => 0,
                Role::Decode => 1,
                Role::Unified => continue,
            };
            if let Some(policy) = policy {
                policies.entry(policy).or_default()[leg].push(&member.worker.name);
            }
        }
        let is_alone =
            |[prefills, decodes]: &[Vec<&str>; 2]| prefills.is_empty() || decodes.is_empty();
        if policies.len() < 2 || !policies.values().any(is_alone) {
            return None;
        }
        let excluded: HashSet<&str> = self.excluded.iter().map(|one| &*one.worker).collect();
        let alone = policies.iter().filter(|(_, engines)| is_alone(engines));
        let named = alone.filter_map(|(policy, engines)| {
            let names = engines.iter().flatten().copied();
            let all: Vec<&str> = names.filter(|name| excluded.contains(name)).collect();
            let more = match all.len().saturating_sub(MAX_NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let first = all[..all.len().min(MAX_NAMED)].join(", ");
            (!all.is_empty()).then(|| format!("{policy} ({first}{more})"))
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() {
            return None;
        }
        Some(format!(
            "prefill and decode must run with the same --disaggregation-decode-allocation-policy; these \
             engines have no peer with theirs and get no requests: {}",
            named.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::tests::member;
    use super::super::{EngineInfo, ObjectName, Profile};
    use super::*;

    fn pool(engines: &[(&str, Role, Option<&str>)]) -> Pool {
        let engine = |(name, role, policy): &(&str, Role, Option<&str>)| {
            let info = EngineInfo {
                page_size: Some(1),
                decode_allocation_policy: policy.map(str::to_owned),
                ..EngineInfo::default()
            };
            member(name, *role, Some(info))
        };
        let name = ObjectName { namespace: "default".into(), name: "pool".into() };
        Pool::new(name, Profile::Pd, engines.iter().map(engine).collect())
    }

    #[test]
    fn engines_whose_policies_differ_are_not_paired_and_are_named() {
        let (early, late) = (Some("default"), Some("prefill_complete"));
        let of_two = pool(&[("p", Role::Prefill, early), ("d", Role::Decode, late)]);
        let reason = of_two.allocation_mismatch().unwrap();
        assert!(reason.ends_with("default (p), prefill_complete (d)"), "{reason}");
        assert!(!of_two.has_ready_workers());
        assert!(of_two.excluded[0].reason.contains("decode allocation"), "{:?}", of_two.excluded);
        let of_both = [("p1", Role::Prefill, early), ("d1", Role::Decode, early)];
        let rollout =
            [of_both[0], of_both[1], ("p2", Role::Prefill, late), ("d2", Role::Decode, late)];
        assert_eq!(pool(&rollout).allocation_mismatch(), None);
        assert_eq!(pool(&rollout).compatible_sets.len(), 2);
        let reason = pool(&rollout[..3]).allocation_mismatch().unwrap();
        assert!(reason.ends_with(": prefill_complete (p2)"), "{reason}");
    }

    #[test]
    fn an_engine_that_reports_no_policy_fits_all() {
        let engines = [("p", Role::Prefill, None), ("d", Role::Decode, Some("prefill_complete"))];
        assert_eq!(pool(&engines).allocation_mismatch(), None);
        assert!(pool(&engines).has_ready_workers());
    }

    #[test]
    fn an_engine_that_is_paired_with_one_without_a_policy_is_not_named() {
        let engines = [
            ("p", Role::Prefill, None),
            ("d", Role::Decode, Some("prefill_complete")),
            ("p2", Role::Prefill, Some("default")),
        ];
        let reason = pool(&engines).allocation_mismatch().unwrap();
        assert!(reason.ends_with("no requests: default (p2)"), "{reason}");
    }
}
