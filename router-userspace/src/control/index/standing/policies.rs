//! The standing of BackendTrafficPolicies.

use std::collections::BTreeSet;

use router_core::fleet::ObjectName;
use serde_json::{Value, json};

use super::super::super::objects::BackendTrafficPolicy;
use super::{
    CONTROLLER_NAME, Condition, GATEWAY_GROUP, Key, Kind, Object, Told, View, object_name, ours,
};

impl View<'_> {
    /// For each of our Gateways that a policy is about, whether it counts, and what of it does not.
    pub(super) fn timeouts(&self, policy: &BackendTrafficPolicy) -> Told {
        let generation = policy.metadata.generation.unwrap_or_default();
        let entry = |gateway: &ObjectName| -> Value {
            let told = self.problems("").filter(|problem| problem.code != "UnknownField");
            let mut accepted = Condition::unless("Accepted", "Accepted", told);
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
        Told::Ancestors(self.gateways_under(policy).iter().map(entry).collect())
    }

    /// Our Gateways that a policy names, or to which a route leads that it names.
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
                Some(Object::Gateway(_)) if !self.foreign.contains(&key) => {
                    gateways.insert(name);
                }
                Some(Object::HttpRoute(route)) => {
                    let parents = route.spec.parent_refs.iter().flatten();
                    let ours = parents
                        .filter(|one| ours::names_ours(self.index, self.foreign, &name, one));
                    gateways.extend(ours.map(|parent| ours::parent_name(&name, parent)));
                }
                _ => {}
            }
        }
        gateways
    }
}
