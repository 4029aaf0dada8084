//! What the objects of a cluster are to be told about themselves, as conditions: the Gateway API's
//! and the Inference Extension's where those have words for it.

mod gateways;
mod policies;
mod pools;

use router_core::fleet::{Fleet, Problem};
use serde_json::{Value, json};

use super::super::objects::{GATEWAY_GROUP, Key, Kind, Object, object_name};
use super::fronts::Fronts;
use super::ours::{self, CONTROLLER_NAME};
use super::{Index, Source};

/// Characters of a condition's message.
const MAX_MESSAGE: usize = 1024;

/// What one object's status should say.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub key: Key,
    pub told: Told,
}

/// A status, by its shape. Conditions carry no time yet.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// `status.conditions`
    Conditions(Vec<Value>),
    /// The same, with `status.listeners` and `status.addresses`.
    Gateway { conditions: Vec<Value>, listeners: Vec<Value>, addresses: Vec<String> },
    /// `status.parents`, of which those with our controller's name are ours.
    Parents(Vec<Value>),
    /// `status.ancestors` of a policy, likewise.
    Ancestors(Vec<Value>),
    /// `status.parent` of InferencePool v1alpha2, which names no controllers: entries of these
    /// Gateways, as `namespace/name`, are not ours.
    Parent { ours: Vec<Value>, of_others: Vec<String> },
}

/// The standing of every object of a cluster that has one.
pub(super) fn standings(index: &Index, fleet: &Fleet) -> Vec<Standing> {
    let foreign = ours::foreign(index);
    let fronts = Fronts::read(index);
    let mut all = Vec::new();
    for kind in [
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::HttpRoute,
        Kind::InferencePoolV1Alpha2,
        Kind::InferencePoolV1,
        Kind::InferenceTrafficPolicy,
        Kind::BackendTrafficPolicy,
    ] {
        let of_cluster = index.of_kind(kind).filter(|(source, _)| **source == Source::Cluster);
        for (_, object) in of_cluster {
            let key = object.key();
            let view = View { index, fleet, foreign: &foreign, fronts: &fronts, key: &key };
            if let Some(told) = view.told(object) {
                all.push(Standing { key, told });
            }
        }
    }
    all
}

/// One object, and what is known around it.
struct View<'a> {
    index: &'a Index,
    fleet: &'a Fleet,
    foreign: &'a std::collections::HashSet<Key>,
    fronts: &'a Fronts,
    key: &'a Key,
}

impl View<'_> {
    fn told(&self, object: &Object) -> Option<Told> {
        let is_foreign = self.foreign.contains(self.key);
        match object {
            Object::GatewayClass(class) if class.spec.controller_name == CONTROLLER_NAME => {
                let generation = class.metadata.generation.unwrap_or_default();
                let accepted = Condition::of("Accepted", "Accepted", "pd-router serves this class");
                Some(Told::Conditions(vec![accepted.value(generation)]))
            }
            Object::Gateway(gateway) if !is_foreign => Some(self.gateway(gateway)),
            Object::HttpRoute(route) => Some(self.route(route)),
            Object::InferencePool(pool) => Some(self.pool(pool)),
            Object::InferenceTrafficPolicy(policy) => Some(self.policy(policy)),
            Object::BackendTrafficPolicy(policy) => Some(self.timeouts(policy)),
            _ => None,
        }
    }

    /// In words, which fields of this object have no effect.
    fn unread(&self) -> String {
        let unread = self.problems("").filter(|problem| problem.code == "UnknownField");
        let fields: Vec<&str> = unread.filter_map(|problem| problem.field.as_deref()).collect();
        match fields.is_empty() {
            true => String::new(),
            false => format!("without effect: {}", fields.join(", ")),
        }
    }

    /// What is wrong with this object, at fields that begin like this.
    fn problems<'s>(&'s self, field: &'s str) -> impl Iterator<Item = &'s Problem> {
        let object = self.key.to_string();
        self.fleet.problems.iter().filter(move |problem| {
            problem.object.as_deref() == Some(object.as_str())
                && problem.field.as_deref().unwrap_or_default().starts_with(field)
        })
    }
}

/// A problem with the field that has it.
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
    /// One that holds.
    fn of(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
        Condition { type_, status: true, reason, message: message.into() }
    }

    /// One that does not.
    fn not(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
        Condition { type_, status: false, reason, message: message.into() }
    }

    /// Holds where nothing is wrong; else the first problem's code and everybody's words say why.
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
