//! The standing of Gateways and HTTPRoutes.

use gateway_api::gateways::{Gateway, GatewayListeners};
use gateway_api::httproutes::HttpRoute;
use router_core::fleet::{ObjectName, Problem};
use serde_json::{Value, json};

use super::{CONTROLLER_NAME, Condition, GATEWAY_GROUP, Told, View, object_name, ours};

/// Codes that are about what a route refers to, and not about the route.
const UNRESOLVED: [&str; 4] =
    ["BackendNotFound", "RefNotPermitted", "InvalidKind", "UnsupportedValue"];

impl View<'_> {
    pub(super) fn gateway(&self, gateway: &Gateway) -> Told {
        let generation = gateway.metadata.generation.unwrap_or_default();
        let name = object_name(&gateway.metadata);
        let all = gateway.spec.listeners.iter().enumerate();
        let listeners: Vec<(bool, Value)> =
            all.map(|(at, spec)| self.listener(&name, at, spec, generation)).collect();
        let served = listeners.iter().filter(|(served, _)| *served).count();
        let accepted = if served == listeners.len() {
            Condition::of("Accepted", "Accepted", "")
        } else if served > 0 {
            Condition::of("Accepted", "ListenersNotValid", "some listeners are not served")
        } else {
            Condition::not("Accepted", "ListenersNotValid", "no listener is served")
        };
        Told::Gateway {
            generation,
            conditions: vec![accepted.value(generation)],
            listeners: listeners.into_iter().map(|(_, value)| value).collect(),
            served,
        }
    }

    fn listener(
        &self,
        gateway: &ObjectName,
        at: usize,
        spec: &GatewayListeners,
        generation: i64,
    ) -> (bool, Value) {
        let field = format!("spec.listeners[{at}].");
        let (kinds, others): (Vec<&Problem>, Vec<&Problem>) = self
            .problems(&field)
            .filter(|problem| !matches!(problem.code, "UnknownField" | "Unsupported"))
            .partition(|problem| problem.code == "InvalidRouteKinds");
        let served = others.is_empty();
        let conflict = others
            .iter()
            .find(|problem| matches!(problem.code, "HostnameConflict" | "Conflicted"))
            .map(|problem| Condition::of("Conflicted", problem.code, &*problem.reason))
            .unwrap_or_else(|| Condition::not("Conflicted", "NoConflicts", ""));
        let programmed = match served {
            true => Condition::of("Programmed", "Programmed", ""),
            false => Condition::not("Programmed", "Invalid", "the listener is not accepted"),
        };
        let wanted = spec.allowed_routes.iter().filter_map(|allowed| allowed.kinds.as_ref());
        let wanted: Vec<_> = wanted.flatten().collect();
        let routes = wanted.is_empty()
            || wanted.iter().any(|kind| {
                kind.kind == "HTTPRoute"
                    && kind.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP
            });
        let supported = match routes {
            true => json!([{"group": GATEWAY_GROUP, "kind": "HTTPRoute"}]),
            false => json!([]),
        };
        let mut listeners = self.fleet.listeners.iter();
        let compiled =
            listeners.find(|listener| listener.gateway == *gateway && *listener.name == *spec.name);
        let conditions = [
            Condition::unless("Accepted", "Accepted", others),
            Condition::unless("ResolvedRefs", "ResolvedRefs", kinds),
            conflict,
            programmed,
        ];
        let value = json!({
            "name": spec.name,
            "supportedKinds": supported,
            "attachedRoutes": compiled.map_or(0, |listener| listener.routes().len()),
            "conditions": conditions.map(|condition| condition.value(generation)),
        });
        (served, value)
    }

    pub(super) fn route(&self, route: &HttpRoute) -> Told {
        let generation = route.metadata.generation.unwrap_or_default();
        let name = object_name(&route.metadata);
        let parents = route.spec.parent_refs.iter().flatten().enumerate();
        let ours = parents
            .filter(|(_, parent)| ours::names_ours(self.index, self.foreign, &name, parent))
            .map(|(at, parent)| {
                let field = format!("spec.parentRefs[{at}]");
                let rules = || self.problems("spec.rules[");
                let unresolved = rules().filter(|problem| {
                    let field = problem.field.as_deref().unwrap_or_default();
                    field.contains("backendRefs[") && UNRESOLVED.contains(&problem.code)
                });
                let dropped: Vec<&Problem> = rules()
                    .filter(|problem| problem.reason.contains("the rule is dropped"))
                    .collect();
                let mut conditions = vec![
                    Condition::unless("Accepted", "Accepted", self.problems(&field))
                        .value(generation),
                    Condition::unless("ResolvedRefs", "ResolvedRefs", unresolved).value(generation),
                ];
                if let Some(first) = dropped.first() {
                    let message = format!("Dropped Rule: {}", first.reason);
                    let partial = Condition::of("PartiallyInvalid", "UnsupportedValue", message);
                    conditions.push(partial.value(generation));
                }
                json!({
                    "parentRef": parent,
                    "controllerName": CONTROLLER_NAME,
                    "conditions": conditions,
                })
            });
        Told::Parents(ours.collect())
    }
}
