//! BackendTrafficPolicy: the request timeouts of Gateways and HTTPRoutes.

use std::collections::HashMap;
use std::time::Duration;

use router_core::fleet::ObjectName;

use super::super::duration;
use super::super::objects::{
    BackendTrafficPolicy, GATEWAY_GROUP, Key, Kind, Object, PolicyTarget, kind_of,
};
use super::build::{Build, Subject, oldest_first};

/// What a policy is attached to: an object, or one section of it.
type AttachmentPoint = (Kind, ObjectName, Option<String>);

/// The request timeouts of all policies, by what they are attached to.
#[derive(Debug, Default)]
pub(super) struct Policies(HashMap<AttachmentPoint, Duration>);

impl Policies {
    /// The timeout of the rule named `section`, else of its route.
    pub(super) fn of_route(&self, route: &ObjectName, section: Option<&str>) -> Option<Duration> {
        self.of(Kind::HttpRoute, route, section)
    }

    /// The timeout of a listener, else of its Gateway.
    pub(super) fn of_gateway(&self, gateway: &ObjectName, listener: &str) -> Option<Duration> {
        self.of(Kind::Gateway, gateway, Some(listener))
    }

    fn of(&self, kind: Kind, name: &ObjectName, section: Option<&str>) -> Option<Duration> {
        let get = |section: Option<&str>| {
            self.0.get(&(kind, name.clone(), section.map(str::to_owned))).copied()
        };
        section.and_then(|section| get(Some(section))).or_else(|| get(None))
    }
}

pub(super) fn read(build: &mut Build<'_>) -> Policies {
    let all = oldest_first(build.index, Kind::BackendTrafficPolicy, |object| match object {
        Object::BackendTrafficPolicy(policy) => Some((&policy.metadata, policy)),
        _ => None,
    });
    let mut policies = Policies::default();
    for (source, name, policy) in all {
        let subject = Subject { source, kind: Kind::BackendTrafficPolicy, name: &name };
        let targets = targets(build, subject, policy);
        let Some(limit) = limit(build, subject, policy) else { continue };
        for (field, target) in targets {
            if let Some(known) = policies.0.get(&target)
                && *known != limit
            {
                let reason =
                    "another policy, older or first by name, has the same target and is used";
                build.add_problem(subject, field, "Conflicted", reason);
                continue;
            }
            policies.0.insert(target, limit);
        }
    }
    policies
}

fn limit(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    policy: &BackendTrafficPolicy,
) -> Option<Duration> {
    let text = policy.spec.timeout.as_ref()?.http.as_ref()?.request_timeout.as_deref()?;
    match duration::parse(text) {
        Ok(limit) => Some(limit),
        Err(reason) => {
            build.add_problem(subject, "spec.timeout.http.requestTimeout", "Invalid", reason);
            None
        }
    }
}

/// The targets that exist, each with the field that references it.
fn targets(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    policy: &BackendTrafficPolicy,
) -> Vec<(String, AttachmentPoint)> {
    let one = policy.spec.target_ref.iter().map(|target| ("spec.targetRef".to_owned(), target));
    let many = policy.spec.target_refs.iter().flatten().enumerate();
    let many = many.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target));
    let named: Vec<(String, &PolicyTarget)> = one.chain(many).collect();
    if named.is_empty() {
        let reason = "is empty: the policy has no effect";
        build.add_problem(subject, "spec.targetRef", "TargetNotFound", reason);
    }
    let mut found = Vec::new();
    for (field, target) in named {
        let kind = match (target.group.as_str(), target.kind.as_str()) {
            (GATEWAY_GROUP, "Gateway") => Kind::Gateway,
            (GATEWAY_GROUP, "HTTPRoute") => Kind::HttpRoute,
            (group, kind) => {
                let reason =
                    format!("{} is not supported; use Gateway or HTTPRoute", kind_of(group, kind));
                build.add_problem(subject, field, "Unsupported", reason);
                continue;
            }
        };
        let namespace = subject.name.namespace.clone();
        let name = ObjectName { namespace, name: target.name.as_str().into() };
        if build.index.get(&Key { kind, name: name.clone() }).is_none() {
            let reason = format!("{} {name} does not exist", target.kind);
            build.add_problem(subject, field, "TargetNotFound", reason);
            continue;
        }
        found.push((field, (kind, name, target.section_name.clone())));
    }
    found
}
