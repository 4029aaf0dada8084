//! The statuses of BackendTrafficPolicies.

use std::collections::BTreeSet;

use router_core::fleet::ObjectName;
use serde_json::{Value, json};

use super::super::super::objects::BackendTrafficPolicy;
use super::{
    CONTROLLER_NAME, Condition, GATEWAY_GROUP, Key, Kind, Object, StatusContext, StatusPatch,
    object_name, ownership,
};

impl StatusContext<'_> {
    /// One entry per Gateway of this controller that a policy applies to.
    pub(super) fn timeouts(&self, policy: &BackendTrafficPolicy) -> StatusPatch {
        let generation = policy.metadata.generation.unwrap_or_default();
        let entry = |gateway: &ObjectName| -> Value {
            let problems = self.problems("").filter(|problem| problem.code != "UnknownField");
            let mut accepted = Condition::unless("Accepted", "Accepted", problems);
            if accepted.status {
                accepted.message = self.unread();
            }
            json!({
                "ancestorRef": {
                    "group": GATEWAY_GROUP, "kind": "Gateway",
                    "namespace": &*gateway.namespace, "name": &*gateway.name,
                },
                "controllerName": CONTROLLER_NAME,
                "conditions": [accepted.value(generation)],
            })
        };
        StatusPatch::Ancestors(self.gateways_under(policy).iter().map(entry).collect())
    }

    /// Gateways of this controller that a policy targets, directly or through a targeted route.
    fn gateways_under(&self, policy: &BackendTrafficPolicy) -> BTreeSet<ObjectName> {
        let namespace = object_name(&policy.metadata).namespace;
        let spec = &policy.spec;
        let mut gateways = BTreeSet::new();
        for target in spec.target_ref.iter().chain(spec.target_refs.iter().flatten()) {
            let name =
                ObjectName { namespace: namespace.clone(), name: target.name.as_str().into() };
            let kind = match (target.group.as_str(), target.kind.as_str()) {
                (GATEWAY_GROUP, "Gateway") => Kind::Gateway,
                (GATEWAY_GROUP, "HTTPRoute") => Kind::HttpRoute,
                _ => continue,
            };
            let key = Key { kind, name: name.clone() };
            match self.index.get(&key) {
                Some(Object::Gateway(_)) if !self.not_owned.contains(&key) => {
                    gateways.insert(name);
                }
                Some(Object::HttpRoute(route)) => {
                    let parents = route.spec.parent_refs.iter().flatten();
                    let ours = parents.filter(|one| {
                        ownership::is_owned_parent(self.index, self.not_owned, &name, one)
                    });
                    gateways.extend(ours.map(|parent| ownership::parent_name(&name, parent)));
                }
                _ => {}
            }
        }
        gateways
    }
}
