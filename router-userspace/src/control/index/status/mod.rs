//! The statuses of a cluster's objects, as conditions of the Gateway API and of the Inference
//! Extension.

mod gateways;
mod policies;
mod pools;

use router_core::fleet::{Fleet, Problem};
use serde_json::{Value, json};

use super::super::objects::{GATEWAY_GROUP, Key, Kind, Object, object_name};
use super::gateway_services::ObservedServices;
use super::ownership::{self, CONTROLLER_NAME};
use super::{Index, Source};

/// Maximum number of characters in a condition's message.
const MAX_MESSAGE: usize = 1024;

/// Features of the Gateway API that pd-router supports, sorted. They are those whose tests in the
/// Gateway API's conformance suite pass.
const FEATURES: [&str; 32] = [
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// The status that one object should have.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectStatus {
    pub key: Key,
    pub patch: StatusPatch,
}

/// The wanted fields of a status. Conditions have no transition time yet.
#[derive(Clone, Debug, PartialEq)]
pub enum StatusPatch {
    /// `status.conditions`
    Conditions(Vec<Value>),
    /// `status.conditions` and `status.supportedFeatures`
    Class { conditions: Vec<Value>, features: &'static [&'static str] },
    /// `status.conditions`, `status.listeners` and `status.addresses`
    Gateway { conditions: Vec<Value>, listeners: Vec<Value>, addresses: Vec<String> },
    /// `status.parents`: the entries with the name of this controller.
    Parents(Vec<Value>),
    /// `status.ancestors` of a policy: the entries with the name of this controller.
    Ancestors(Vec<Value>),
    /// `status.parent` of InferencePool v1alpha2, whose entries have no controller name. Entries of
    /// `other_gateways` (`namespace/name`) belong to other controllers.
    Parent { ours: Vec<Value>, other_gateways: Vec<String> },
}

/// The status of every object of a cluster that has one.
pub(super) fn statuses(index: &Index, fleet: &Fleet) -> Vec<ObjectStatus> {
    let not_owned = ownership::not_owned(index);
    let services = ObservedServices::read(index);
    let mut all = Vec::new();
    for kind in [
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::HttpRoute,
        Kind::InferencePoolV1Alpha2,
        Kind::InferencePoolV1,
        Kind::InferenceTrafficPolicy,
        Kind::BackendTrafficPolicy,
        Kind::BackendTlsPolicy,
    ] {
        let of_cluster = index.of_kind(kind).filter(|(source, _)| **source == Source::Cluster);
        for (_, object) in of_cluster {
            let key = object.key();
            let context = StatusContext {
                index,
                fleet,
                not_owned: &not_owned,
                services: &services,
                key: &key,
            };
            if let Some(patch) = context.status(object) {
                all.push(ObjectStatus { key, patch });
            }
        }
    }
    all
}

/// One object, and what its status depends on.
struct StatusContext<'a> {
    index: &'a Index,
    fleet: &'a Fleet,
    not_owned: &'a std::collections::HashSet<Key>,
    services: &'a ObservedServices,
    key: &'a Key,
}

impl StatusContext<'_> {
    fn status(&self, object: &Object) -> Option<StatusPatch> {
        let is_not_owned = self.not_owned.contains(self.key);
        match object {
            Object::GatewayClass(class) if class.spec.controller_name == CONTROLLER_NAME => {
                let generation = class.metadata.generation.unwrap_or_default();
                let accepted = Condition::of(
                    "Accepted",
                    "Accepted",
                    "pd-router serves Gateways of this class",
                );
                Some(StatusPatch::Class {
                    conditions: vec![accepted.value(generation)],
                    features: &FEATURES,
                })
            }
            Object::Gateway(gateway) if !is_not_owned => Some(self.gateway(gateway)),
            Object::HttpRoute(route) => Some(self.route(route)),
            Object::InferencePool(pool) => Some(self.pool(pool)),
            Object::InferenceTrafficPolicy(policy) => Some(self.policy(policy)),
            Object::BackendTrafficPolicy(policy) => Some(self.timeouts(policy)),
            Object::BackendTlsPolicy(policy) | Object::UnreadBackendTlsPolicy(policy) => {
                Some(self.backend_tls(policy))
            }
            _ => None,
        }
    }

    /// A message that lists the fields of this object without effect.
    fn unread(&self) -> String {
        let unread = self.problems("").filter(|problem| problem.code == "UnknownField");
        let fields: Vec<&str> = unread.filter_map(|problem| problem.field.as_deref()).collect();
        match fields.is_empty() {
            true => String::new(),
            false => format!("fields without effect: {}", fields.join(", ")),
        }
    }

    /// The problems of this object in fields with this prefix.
    fn problems<'s>(&'s self, field: &'s str) -> impl Iterator<Item = &'s Problem> {
        let object = self.key.to_string();
        self.fleet.problems.iter().filter(move |problem| {
            problem.object.as_deref() == Some(object.as_str())
                && problem.field.as_deref().unwrap_or_default().starts_with(field)
        })
    }
}

/// A problem as `field: reason`.
fn at_field(problem: &Problem) -> String {
    format!("{}: {}", problem.field.as_deref().unwrap_or_default(), problem.reason)
}

/// One condition before it is written.
struct Condition {
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    /// A condition with status True.
    fn of(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
        Condition { type_, status: true, reason, message: message.into() }
    }

    /// A condition with status False.
    fn not(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
        Condition { type_, status: false, reason, message: message.into() }
    }

    /// True if there are no problems. Otherwise False, with the first problem's code as reason and
    /// all problems in the message.
    fn unless(
        type_: &'static str,
        reason: &'static str,
        problems: impl IntoIterator<Item = impl std::borrow::Borrow<Problem>>,
    ) -> Condition {
        let mut problems = problems.into_iter().peekable();
        let Some(code) = problems.peek().map(|first| first.borrow().code) else {
            return Condition::of(type_, reason, "");
        };
        let texts = problems.map(|problem| at_field(problem.borrow()));
        Condition::not(type_, code, texts.collect::<Vec<_>>().join("; "))
    }

    fn value(self, generation: i64) -> Value {
        let message: String = self.message.chars().take(MAX_MESSAGE).collect();
        json!({
            "type": self.type_,
            "status": if self.status { "True" } else { "False" },
            "reason": self.reason,
            "message": message,
            "observedGeneration": generation,
        })
    }
}

#[cfg(test)]
mod tests;
