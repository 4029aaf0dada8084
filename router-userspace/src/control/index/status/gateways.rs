//! The statuses of Gateways and HTTPRoutes.

use std::collections::BTreeMap;

use gateway_api::gateways::{Gateway, GatewayListeners};
use gateway_api::httproutes::HttpRoute;
use router_core::fleet::{ObjectName, Problem};
use serde_json::{Value, json};

use super::super::listeners::is_served_protocol;
use super::{
    CONTROLLER_NAME, Condition, GATEWAY_GROUP, StatusContext, StatusPatch, at_field, object_name,
    ownership,
};

/// Codes of problems with an object that a route references.
const UNRESOLVED: [&str; 4] =
    ["BackendNotFound", "RefNotPermitted", "InvalidKind", "UnsupportedValue"];

/// The end of the field that names the backend of a mirror. Without it, the rule is served all the same.
const OF_MIRROR: &str = ".requestMirror.backendRef";

/// Codes of problems with an object that a listener references.
const OF_LISTENER_REFERENCES: [&str; 3] =
    ["InvalidRouteKinds", OF_CERTIFICATES[0], OF_CERTIFICATES[1]];
/// Codes of problems with a listener's certificates.
const OF_CERTIFICATES: [&str; 2] = ["InvalidCertificateRef", "RefNotPermitted"];
/// Codes of conflicts with another listener.
const OF_CONFLICTS: [&str; 3] = ["HostnameConflict", "ProtocolConflict", "Conflicted"];
const NO_PORT: &str = "the Gateway's Service does not target a port of pd-router yet";

/// The state of a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListenerStage {
    Invalid,
    /// Valid, but no Service targets it yet.
    Pending,
    Programmed,
}

struct ListenerStatus {
    accepted: bool,
    stage: ListenerStage,
    value: Value,
}

/// The kinds of routes that the listener serves. A listener whose protocol is not served has none.
fn supported_kinds(spec: &GatewayListeners) -> Value {
    if !is_served_protocol(&spec.protocol) {
        return json!([]);
    }
    let wanted = spec.allowed_routes.iter().filter_map(|allowed| allowed.kinds.as_ref());
    let wanted: Vec<_> = wanted.flatten().collect();
    let routes = wanted.is_empty()
        || wanted.iter().any(|kind| {
            kind.kind == "HTTPRoute"
                && kind.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP
        });
    match routes {
        true => json!([{"group": GATEWAY_GROUP, "kind": "HTTPRoute"}]),
        false => json!([]),
    }
}

impl StatusContext<'_> {
    pub(super) fn gateway(&self, gateway: &Gateway) -> StatusPatch {
        let generation = gateway.metadata.generation.unwrap_or_default();
        let name = object_name(&gateway.metadata);
        let all = gateway.spec.listeners.iter().enumerate();
        let mut listeners: Vec<ListenerStatus> =
            all.map(|(at, spec)| self.listener(&name, at, spec, generation)).collect();
        let accepted = listeners.iter().filter(|listener| listener.accepted).count();
        let mut parameters = self.problems("spec.infrastructure.parametersRef");
        let parameters = parameters.find(|problem| problem.code == "InvalidParameters");
        if parameters.is_some() {
            listeners.iter_mut().for_each(|listener| listener.stage = ListenerStage::Invalid);
        }
        let condition = if let Some(bad) = parameters {
            Condition::not("Accepted", bad.code, &*bad.reason)
        } else if accepted == listeners.len() {
            Condition::of("Accepted", "Accepted", "")
        } else if accepted > 0 {
            Condition::of("Accepted", "ListenersNotValid", "some listeners are not served")
        } else {
            Condition::not("Accepted", "ListenersNotValid", "no listener is served")
        };
        let addresses = self.services.addresses(gateway);
        let programmed = self.programmed(&listeners, !addresses.is_empty());
        StatusPatch::Gateway {
            conditions: vec![condition.value(generation), programmed.value(generation)],
            listeners: listeners.into_iter().map(|listener| listener.value).collect(),
            addresses,
        }
    }

    fn programmed(&self, listeners: &[ListenerStatus], has_address: bool) -> Condition {
        let pending = |listener: &ListenerStatus| listener.stage == ListenerStage::Pending;
        if listeners.iter().any(|listener| listener.stage == ListenerStage::Programmed) {
            return match has_address {
                true => Condition::of("Programmed", "Programmed", ""),
                false => Condition::not(
                    "Programmed",
                    "AddressNotAssigned",
                    "the Gateway's Service has no address yet",
                ),
            };
        }
        match listeners.iter().any(pending) {
            true => Condition::not("Programmed", "Pending", NO_PORT),
            false => Condition::not("Programmed", "Invalid", "no listener is served"),
        }
    }

    fn listener(
        &self,
        gateway: &ObjectName,
        at: usize,
        spec: &GatewayListeners,
        generation: i64,
    ) -> ListenerStatus {
        let field = format!("spec.listeners[{at}].");
        let (references, others): (Vec<&Problem>, Vec<&Problem>) = self
            .problems(&field)
            .filter(|problem| !matches!(problem.code, "UnknownField" | "Unsupported"))
            .partition(|problem| OF_LISTENER_REFERENCES.contains(&problem.code));
        let mut listeners = self.fleet.listeners.iter();
        let compiled =
            listeners.find(|listener| listener.gateway == *gateway && *listener.name == *spec.name);
        let accepted = others.is_empty();
        // Routes are attached to a listener that is not served, such as one without a certificate.
        let unserved = || {
            let mut unserved = self.fleet.unserved_listeners.iter();
            unserved
                .find(|listener| listener.gateway == *gateway && *listener.name == *spec.name)
                .filter(|_| accepted)
                .map_or(0, |listener| listener.routes().len())
        };
        let certified = spec.protocol != "HTTPS"
            || !references.iter().any(|problem| OF_CERTIFICATES.contains(&problem.code));
        let stage = match compiled.filter(|_| accepted) {
            Some(_) => ListenerStage::Programmed,
            None if accepted && certified => ListenerStage::Pending,
            None => ListenerStage::Invalid,
        };
        let conflict = others
            .iter()
            .find(|problem| OF_CONFLICTS.contains(&problem.code))
            .map(|problem| Condition::of("Conflicted", problem.code, &*problem.reason))
            .unwrap_or_else(|| Condition::not("Conflicted", "NoConflicts", ""));
        let programmed = match stage {
            ListenerStage::Programmed => Condition::of("Programmed", "Programmed", ""),
            ListenerStage::Pending => Condition::not("Programmed", "Pending", NO_PORT),
            ListenerStage::Invalid => {
                Condition::not("Programmed", "Invalid", "the listener is not served")
            }
        };
        let conditions = [
            Condition::unless("Accepted", "Accepted", others),
            Condition::unless("ResolvedRefs", "ResolvedRefs", references),
            conflict,
            programmed,
        ];
        let value = json!({
            "name": spec.name,
            "supportedKinds": supported_kinds(spec),
            "attachedRoutes": compiled.map_or_else(unserved, |listener| listener.routes().len()),
            "conditions": conditions.map(|condition| condition.value(generation)),
        });
        ListenerStatus { accepted, stage, value }
    }

    pub(super) fn route(&self, route: &HttpRoute) -> StatusPatch {
        let generation = route.metadata.generation.unwrap_or_default();
        let name = object_name(&route.metadata);
        let parents = route.spec.parent_refs.iter().flatten().enumerate();
        let ours = parents
            .filter(|(_, parent)| {
                ownership::is_owned_parent(self.index, self.not_owned, &name, parent)
            })
            .map(|(at, parent)| {
                let field = format!("spec.parentRefs[{at}]");
                let rules = || self.problems("spec.rules[");
                let unresolved = rules().filter(|problem| {
                    let field = problem.field.as_deref().unwrap_or_default();
                    let names_backend =
                        field.contains("backendRefs[") || field.ends_with(OF_MIRROR);
                    names_backend && UNRESOLVED.contains(&problem.code)
                });
                let dropped: BTreeMap<&str, &Problem> = rules()
                    .filter_map(|problem| {
                        let (rule, rest) = problem.field.as_deref()?.split_once(']')?;
                        let filter = rest.starts_with(".filters[")
                            && !rest.ends_with(OF_MIRROR)
                            && problem.code != "UnknownField";
                        let gone = filter || problem.reason.contains("the rule is dropped");
                        gone.then_some((rule, problem))
                    })
                    .collect();
                let mut accepted = Condition::unless("Accepted", "Accepted", self.problems(&field));
                let nothing_left = dropped.len() == route.spec.rules.iter().flatten().count();
                if let (Some(first), true, true) =
                    (dropped.values().next(), nothing_left, accepted.status)
                {
                    accepted = Condition::not("Accepted", "UnsupportedValue", at_field(first));
                }
                let mut conditions = vec![
                    accepted.value(generation),
                    Condition::unless("ResolvedRefs", "ResolvedRefs", unresolved).value(generation),
                ];
                if let (Some(first), false) = (dropped.values().next(), nothing_left) {
                    let message = format!("Dropped Rule: {}", at_field(first));
                    let partial = Condition::of("PartiallyInvalid", "UnsupportedValue", message);
                    conditions.push(partial.value(generation));
                }
                json!({
                    "parentRef": parent,
                    "controllerName": CONTROLLER_NAME,
                    "conditions": conditions,
                })
            });
        StatusPatch::Parents(ours.collect())
    }
}
