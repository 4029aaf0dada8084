//! The statuses of InferencePools and InferenceTrafficPolicies.

use std::collections::BTreeSet;

use router_core::fleet::{ObjectName, Phase, Pool, Problem, Profile, Role};
use serde_json::{Value, json};

use super::super::super::objects::{
    InferencePool, InferenceTrafficPolicy, POOL_GROUP_V1, POOL_GROUP_V1ALPHA2, PoolSpec,
};
use super::super::{bootstrap, grants};
use super::{
    CONTROLLER_NAME, Condition, GATEWAY_GROUP, Kind, Object, StatusContext, StatusPatch,
    object_name, ownership,
};

impl StatusContext<'_> {
    pub(super) fn pool(&self, pool: &InferencePool) -> StatusPatch {
        let generation = pool.metadata.generation.unwrap_or_default();
        let picker = match &pool.spec {
            PoolSpec::V1Alpha2(spec) => spec.extension_ref.is_some(),
            PoolSpec::V1(spec) => spec.endpoint_picker_ref.is_some(),
            PoolSpec::OfEngines { .. } => false,
        };
        let accepted = match picker {
            true => "the endpoint picker of the pool is not used: pd-router picks endpoints itself",
            false => "",
        };
        let entries: Vec<Value> = self
            .gateways_of(self.key.kind)
            .into_iter()
            .map(|gateway| {
                let conditions = [
                    Condition::of("Accepted", "Accepted", accepted),
                    Condition::unless("ResolvedRefs", "ResolvedRefs", self.problems("spec.")),
                ];
                let mut entry = json!({
                    "parentRef": {
                        "group": GATEWAY_GROUP, "kind": "Gateway",
                        "namespace": &*gateway.namespace, "name": &*gateway.name,
                    },
                    "conditions": conditions.map(|condition| condition.value(generation)),
                });
                if self.key.kind == Kind::InferencePoolV1 {
                    entry["controllerName"] = CONTROLLER_NAME.into();
                }
                entry
            })
            .collect();
        if self.key.kind == Kind::InferencePoolV1 {
            return StatusPatch::Parents(entries);
        }
        let other_gateways = self
            .not_owned
            .iter()
            .filter(|key| key.kind == Kind::Gateway)
            .map(|key| key.name.to_string());
        let mut other_gateways: Vec<String> = other_gateways.collect();
        other_gateways.sort();
        StatusPatch::Parent { ours: entries, other_gateways }
    }

    /// Gateways of this controller with a route to this pool.
    fn gateways_of(&self, kind: Kind) -> BTreeSet<ObjectName> {
        let mut gateways = BTreeSet::new();
        for (_, object) in self.index.of_kind(Kind::HttpRoute) {
            let Object::HttpRoute(route) = object else { continue };
            let leads = ownership::pools(route).contains(self.key);
            if !leads || self.key.kind != kind {
                continue;
            }
            let name = object_name(&route.metadata);
            let (group, pool) = (group(kind), &self.key.name);
            let from = ("HTTPRoute", &*name.namespace);
            if !grants::permits(self.index, from, group, "InferencePool", pool) {
                continue;
            }
            for parent in route.spec.parent_refs.iter().flatten() {
                if ownership::is_owned_parent(self.index, self.not_owned, &name, parent) {
                    gateways.insert(ownership::parent_name(&name, parent));
                }
            }
        }
        gateways
    }

    pub(super) fn policy(&self, policy: &InferenceTrafficPolicy) -> StatusPatch {
        let generation = policy.metadata.generation.unwrap_or_default();
        let problems: Vec<_> = self
            .problems("")
            .filter(|problem| problem.code != "UnknownField" && !is_remark(problem))
            .collect();
        let mut accepted = Condition::unless("Accepted", "Accepted", problems);
        let pd = policy.spec.profile.as_ref().and_then(|profile| profile.pd.as_ref());
        if accepted.status {
            let remark = self.problems("").find(|problem| is_remark(problem));
            let port = pd.map(|pd| pd.kv_transfer.as_ref().and_then(|kv| kv.bootstrap_port));
            if let Some(remark) = remark {
                (accepted.reason, accepted.message) = (remark.code, remark.reason.to_string());
            } else if port == Some(None) {
                accepted.reason = "DefaultBootstrapPort";
                accepted.message = "spec.profile.pd.kvTransfer.bootstrapPort is not set: the port that each engine reports is used".to_owned();
            }
            let unread = self.unread();
            if !unread.is_empty() {
                let between = if accepted.message.is_empty() { "" } else { "; " };
                accepted.message.push_str(&format!("{between}{unread}"));
            }
        }
        let mut conditions = vec![accepted.value(generation)];
        let name = ObjectName {
            namespace: object_name(&policy.metadata).namespace,
            name: policy.spec.pool_ref.name.as_str().into(),
        };
        if let Some(pool) = self.fleet.pool(&name) {
            conditions.push(ready(pool).value(generation));
        }
        StatusPatch::Conditions(conditions)
    }
}

/// Whether the policy is in effect in spite of the problem.
fn is_remark(problem: &Problem) -> bool {
    matches!(problem.code, "RoleLabelAlias" | bootstrap::MISMATCH)
}

fn group(kind: Kind) -> &'static str {
    match kind {
        Kind::InferencePoolV1 => POOL_GROUP_V1,
        _ => POOL_GROUP_V1ALPHA2,
    }
}

/// Whether a pool has a ready pod of every role that a request needs.
fn ready(pool: &Pool) -> Condition {
    let count = |role: Role| {
        let members = pool.members.iter();
        members.filter(|member| member.role == role && member.phase == Phase::Ready).count()
    };
    match pool.profile {
        Profile::Single => match count(Role::Unified) {
            0 => Condition::not("Ready", "NoReadyPods", "no pod of the pool is ready"),
            _ => Condition::of("Ready", "Ready", ""),
        },
        Profile::Pd => match (count(Role::Prefill), count(Role::Decode)) {
            (0, 0) => Condition::not("Ready", "NoReadyPods", "no pod of the pool is ready"),
            (0, _) => Condition::not("Ready", "NoPrefill", "no prefill pod is ready"),
            (_, 0) => Condition::not("Ready", "NoDecode", "no decode pod is ready"),
            _ => Condition::of("Ready", "Ready", ""),
        },
    }
}
