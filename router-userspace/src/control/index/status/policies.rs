//! The statuses of BackendTrafficPolicies and BackendTLSPolicies.

use std::collections::BTreeSet;

use router_core::fleet::{ObjectName, Problem};
use serde_json::{Value, json};

use gateway_api::backendtlspolicies::BackendTlsPolicy;
use gateway_api::httproutes::HttpRoute;

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
            let accepted = self.accepted(problems);
            ancestor(gateway, vec![accepted.value(generation)])
        };
        StatusPatch::Ancestors(self.gateways_under(policy).iter().map(entry).collect())
    }

    /// One entry per Gateway of this controller with a route to a Service of the policy.
    pub(super) fn backend_tls(&self, policy: &BackendTlsPolicy) -> StatusPatch {
        let generation = policy.metadata.generation.unwrap_or_default();
        let entry = |gateway: &ObjectName| -> Value {
            let of_reference = |problem: &&Problem| {
                let field = problem.field.as_deref().unwrap_or_default();
                field.starts_with("spec.validation.caCertificateRefs[")
            };
            let problems = || self.problems("").filter(|one| one.code != "UnknownField");
            let accepted = self.accepted(problems().filter(|one| !of_reference(one)));
            let resolved = problems().filter(of_reference);
            let resolved = Condition::unless("ResolvedRefs", "ResolvedRefs", resolved);
            ancestor(gateway, vec![accepted.value(generation), resolved.value(generation)])
        };
        StatusPatch::Ancestors(self.gateways_with_routes_to(policy).iter().map(entry).collect())
    }

    fn accepted<'p>(&self, problems: impl Iterator<Item = &'p Problem>) -> Condition {
        let mut accepted = Condition::unless("Accepted", "Accepted", problems);
        if accepted.status {
            accepted.message = self.unread();
        }
        accepted
    }

    /// Gateways of this controller with a route to a Service that the policy targets.
    fn gateways_with_routes_to(&self, policy: &BackendTlsPolicy) -> BTreeSet<ObjectName> {
        let namespace = object_name(&policy.metadata).namespace;
        let targets = policy.spec.target_refs.iter().filter(|target| target.kind == "Service");
        let services: BTreeSet<ObjectName> = targets
            .map(|target| ObjectName {
                namespace: namespace.clone(),
                name: target.name.as_str().into(),
            })
            .collect();
        let mut gateways = BTreeSet::new();
        for (_, object) in self.index.of_kind(Kind::HttpRoute) {
            let Object::HttpRoute(route) = object else { continue };
            let name = object_name(&route.metadata);
            if services_of(route, &name).iter().any(|service| services.contains(service)) {
                let parents = route.spec.parent_refs.iter().flatten();
                let ours = parents.filter(|one| {
                    ownership::is_owned_parent(self.index, self.not_owned, &name, one)
                });
                gateways.extend(ours.map(|parent| ownership::parent_name(&name, parent)));
            }
        }
        gateways
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

/// One entry of a policy's `status.ancestors`.
fn ancestor(gateway: &ObjectName, conditions: Vec<Value>) -> Value {
    json!({
        "ancestorRef": {
            "group": GATEWAY_GROUP, "kind": "Gateway",
            "namespace": &*gateway.namespace, "name": &*gateway.name,
        },
        "controllerName": CONTROLLER_NAME,
        "conditions": conditions,
    })
}

/// The Services that a route names as backends or mirrors.
fn services_of(route: &HttpRoute, name: &ObjectName) -> Vec<ObjectName> {
    let mut services = Vec::new();
    let mut add = |kind: &Option<String>, namespace: &Option<String>, service: &str| {
        if kind.as_deref().is_none_or(|kind| kind == "Service") {
            let namespace = namespace.as_deref().unwrap_or(&name.namespace).into();
            services.push(ObjectName { namespace, name: service.into() });
        }
    };
    for rule in route.spec.rules.iter().flatten() {
        for mirror in rule.filters.iter().flatten().filter_map(|one| one.request_mirror.as_ref()) {
            let to = &mirror.backend_ref;
            add(&to.kind, &to.namespace, &to.name);
        }
        for backend in rule.backend_refs.iter().flatten() {
            add(&backend.kind, &backend.namespace, &backend.name);
            let own =
                backend.filters.iter().flatten().filter_map(|one| one.request_mirror.as_ref());
            for mirror in own {
                let to = &mirror.backend_ref;
                add(&to.kind, &to.namespace, &to.name);
            }
        }
    }
    services
}
