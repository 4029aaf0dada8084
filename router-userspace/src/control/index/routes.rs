//! HTTPRoutes: their rules, and the listeners that they attach to.

use std::sync::Arc;
use std::time::Duration;

use gateway_api::httproutes::{
    HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs,
};
use router_core::fleet::{ObjectName, Profile};
use router_core::route::{
    AttachedRule, Backend, Filters, Hostname, Listener, Match, Rule, Target, Timeouts,
};

use super::super::duration;
use super::super::objects::{
    GATEWAY_GROUP, Key, Kind, Object, POOL_GROUP_V1, POOL_GROUP_V1ALPHA2, kind_of, object_name,
};
use super::build::{Build, Subject, created};
use super::listeners::{Bound, Frame};
use super::policies::Policies;
use super::{Source, filters, grants, matches, ours, services};

/// One rule, as far as it is the same on every listener.
struct RuleParts {
    index: usize,
    name: Option<String>,
    matches: Vec<Match>,
    timeouts: Timeouts,
    backends: Vec<Backend>,
}

/// Attaches every route to the listeners that it names, and compiles the listeners.
pub(super) fn attach(
    build: &mut Build<'_>,
    mut frames: Vec<Frame<'_>>,
    policies: &Policies,
) -> Vec<Listener> {
    for (source, object) in build.ours(Kind::HttpRoute) {
        let Object::HttpRoute(route) = object else { continue };
        let name = object_name(&route.metadata);
        let subject = Subject { source, kind: Kind::HttpRoute, name: &name };
        let Some(hostnames) = hostnames(build, subject, route) else { continue };
        let parts = rules(build, subject, route);
        for at in parents(build, subject, route, &frames, &hostnames) {
            let frame = &mut frames[at];
            let meets = |host: &&Hostname| {
                frame.hostname.as_ref().is_none_or(|listener| listener.intersects(host))
            };
            let hosts: Vec<Option<Hostname>> = match hostnames.is_empty() {
                true => vec![None],
                false => hostnames.iter().filter(meets).cloned().map(Some).collect(),
            };
            for part in &parts {
                let rule = Arc::new(rule(part, &name, route, frame, policies));
                for host in &hosts {
                    frame.attached.extend(part.matches.iter().map(|matching| AttachedRule {
                        hostname: host.clone(),
                        matching: matching.clone(),
                        rule: Arc::clone(&rule),
                    }));
                }
            }
        }
    }
    frames.into_iter().filter_map(listener).collect()
}

fn listener(frame: Frame<'_>) -> Option<Listener> {
    let Bound { socket_port, certificates } = frame.bound?;
    let name = frame.spec.name.as_str().into();
    let mut listener =
        Listener::new(frame.gateway, name, frame.port, frame.hostname, frame.attached);
    (listener.socket_port, listener.certificates) = (socket_port, certificates);
    Some(listener)
}

fn rule(
    part: &RuleParts,
    name: &ObjectName,
    route: &HttpRoute,
    frame: &Frame<'_>,
    policies: &Policies,
) -> Rule {
    let of_policy = policies
        .of_route(name, part.name.as_deref())
        .or_else(|| policies.of_gateway(&frame.gateway, &frame.spec.name));
    let timeouts = part.timeouts.or(Timeouts { request: of_policy, backend_request: None });
    let age = created(&route.metadata);
    Rule::new(name.clone(), part.index, age, timeouts, part.backends.clone())
}

/// The route's host names; `None` where it names some and none is valid.
fn hostnames(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    route: &HttpRoute,
) -> Option<Vec<Hostname>> {
    let texts = route.spec.hostnames.as_deref().unwrap_or_default();
    let mut names = Vec::new();
    for (position, text) in texts.iter().enumerate() {
        match Hostname::parse(text) {
            Ok(name) if names.contains(&name) => {}
            Ok(name) => names.push(name),
            Err(error) => {
                let field = format!("spec.hostnames[{position}]");
                build.complain(subject, field, "Invalid", format!("{text:?} {error}"));
            }
        }
    }
    (texts.is_empty() || !names.is_empty()).then_some(names)
}

/// The positions of the listeners that the route is attached to.
fn parents(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    route: &HttpRoute,
    frames: &[Frame<'_>],
    hostnames: &[Hostname],
) -> Vec<usize> {
    let refs = route.spec.parent_refs.as_deref().unwrap_or_default();
    if refs.is_empty() {
        let reason = "names no Gateway: the route is attached to nothing";
        build.complain(subject, "spec.parentRefs", "NoMatchingParent", reason);
    }
    let mut found = Vec::new();
    for (position, parent) in refs.iter().enumerate() {
        match listeners(build, subject, parent, frames, hostnames) {
            Ok(more) => found.extend(more),
            Err((code, reason)) => {
                build.complain(subject, format!("spec.parentRefs[{position}]"), code, reason);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn listeners(
    build: &Build<'_>,
    subject: Subject<'_>,
    parent: &HttpRouteParentRefs,
    frames: &[Frame<'_>],
    hostnames: &[Hostname],
) -> Result<Vec<usize>, (&'static str, String)> {
    let route = subject.name;
    if *subject.source == Source::Cluster
        && !ours::names_ours(build.index, build.foreign, route, parent)
    {
        // A route may have parents of other controllers, which have their own say.
        return Ok(Vec::new());
    }
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != (GATEWAY_GROUP, "Gateway") {
        return Err((
            "InvalidKind",
            format!("{} is no parent that is served; Gateway is", kind_of(group, kind)),
        ));
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let gateway = ObjectName { namespace: namespace.into(), name: parent.name.as_str().into() };
    if build.index.get(&Key { kind: Kind::Gateway, name: gateway.clone() }).is_none() {
        return Err(("NoMatchingParent", format!("Gateway {gateway} is not here")));
    }
    let mut left: Vec<usize> = (0..frames.len())
        .filter(|&at| {
            let frame = &frames[at];
            frame.gateway == gateway
                && parent.section_name.as_ref().is_none_or(|section| *section == frame.spec.name)
                && parent.port.is_none_or(|port| port == frame.spec.port)
        })
        .collect();
    if left.is_empty() {
        return Err(("NoMatchingParent", format!("Gateway {gateway} has no such listener")));
    }
    left.retain(|&at| frames[at].allows(build.index, &route.namespace));
    if left.is_empty() {
        let reason =
            format!("no listener of Gateway {gateway} allows HTTPRoutes of this namespace");
        return Err(("NotAllowedByListeners", reason));
    }
    left.retain(|&at| {
        let listener = frames[at].hostname.as_ref();
        hostnames.is_empty()
            || listener
                .is_none_or(|listener| hostnames.iter().any(|host| listener.intersects(host)))
    });
    if left.is_empty() {
        let reason = format!("no listener of Gateway {gateway} has a host name of the route");
        return Err(("NoMatchingListenerHostname", reason));
    }
    Ok(left)
}

fn rules(build: &mut Build<'_>, subject: Subject<'_>, route: &HttpRoute) -> Vec<RuleParts> {
    let rules = route.spec.rules.as_deref().unwrap_or_default();
    let mut parts = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        match matches::compile(rule) {
            Ok(matches) => {
                let timeouts = timeouts(build, subject, rule, &at);
                let backends = backends(build, subject, rule, &at);
                parts.push(RuleParts {
                    index,
                    name: rule.name.clone(),
                    matches,
                    timeouts,
                    backends,
                });
            }
            Err((field, code, reason)) => {
                let reason = format!("{reason}; the rule is dropped");
                build.complain(subject, format!("{at}.{field}"), code, reason);
            }
        }
    }
    parts
}

fn timeouts(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    rule: &HttpRouteRules,
    at: &str,
) -> Timeouts {
    let Some(spec) = &rule.timeouts else { return Timeouts::default() };
    let mut read = |field: &str, text: Option<&String>| -> Option<Duration> {
        duration::parse(text?)
            .map_err(|reason| {
                let reason = format!("{reason}; no timeout is set");
                build.complain(subject, format!("{at}.timeouts.{field}"), "Invalid", reason);
            })
            .ok()
    };
    let request = read("request", spec.request.as_ref());
    let backend_request = read("backendRequest", spec.backend_request.as_ref());
    Timeouts { request, backend_request }
}

fn broken(reason: impl Into<Arc<str>>) -> Target {
    Target::Broken { reason: reason.into() }
}

fn backends(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    rule: &HttpRouteRules,
    at: &str,
) -> Vec<Backend> {
    let only = |target, filters| vec![Backend { weight: 1, target, filters }];
    let of_rule = match filters::compile(rule.filters.as_deref().unwrap_or_default()) {
        Ok(compiled) => compiled,
        Err((field, code, reason)) => {
            build.complain(subject, format!("{at}.{field}"), code, reason.as_str());
            return only(broken(reason), Filters::default());
        }
    };
    let refs = rule.backend_refs.as_deref().unwrap_or_default();
    if let Some(redirect) = of_rule.redirect {
        if !refs.is_empty() {
            let reason = "have no effect beside RequestRedirect";
            build.complain(subject, format!("{at}.backendRefs"), "Invalid", reason);
        }
        return only(Target::Redirect(redirect), of_rule.filters);
    }
    let mut backends = Vec::new();
    for (position, reference) in refs.iter().enumerate() {
        let at = format!("{at}.backendRefs[{position}]");
        let weight = reference.weight.unwrap_or(1);
        let Ok(weight) = u32::try_from(weight) else {
            let reason = format!("{weight} is below 0; nothing is sent there");
            build.complain(subject, format!("{at}.weight"), "Invalid", reason);
            continue;
        };
        let (target, filters) = backend(build, subject, reference, &at);
        backends.push(Backend { weight, target, filters: of_rule.filters.then(filters) });
    }
    backends
}

fn backend(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    reference: &HttpRouteRulesBackendRefs,
    at: &str,
) -> (Target, Filters) {
    let own = match filters::compile_backend(reference.filters.as_deref().unwrap_or_default()) {
        Ok(own) => own,
        Err((field, code, reason)) => {
            build.complain(subject, format!("{at}.{field}"), code, reason.as_str());
            return (broken(reason), Filters::default());
        }
    };
    let target = match (own.redirect, target(build, subject.name, reference)) {
        (Some(redirect), _) => Target::Redirect(redirect),
        (None, Ok(target)) => target,
        (None, Err((code, reason))) => {
            let told = format!("{reason}; its share of the requests answers 500");
            build.complain(subject, at, code, told);
            broken(reason)
        }
    };
    (target, own.filters)
}

fn target(
    build: &mut Build<'_>,
    route: &ObjectName,
    reference: &HttpRouteRulesBackendRefs,
) -> Result<Target, (&'static str, String)> {
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let namespace = reference.namespace.as_deref().unwrap_or(&route.namespace);
    let name = ObjectName { namespace: namespace.into(), name: reference.name.as_str().into() };
    let pool = match (group, kind) {
        ("", "Service") => None,
        (POOL_GROUP_V1ALPHA2, "InferencePool") => Some(Kind::InferencePoolV1Alpha2),
        (POOL_GROUP_V1, "InferencePool") => Some(Kind::InferencePoolV1),
        _ => {
            let reason = format!("{} is no backend that is served", kind_of(group, kind));
            return Err(("InvalidKind", reason));
        }
    };
    if !grants::permits(build.index, ("HTTPRoute", &route.namespace), group, kind, &name) {
        let reason = format!("no ReferenceGrant lets this route name {kind} {name}");
        return Err(("RefNotPermitted", reason));
    }
    let Some(pool) = pool else {
        return Ok(Target::Service(services::resolve(build, &name, reference.port)?));
    };
    let Some(pool) = build.pools.get(&(pool, name.clone())) else {
        return Err(("BackendNotFound", format!("InferencePool {name} of {group} is not here")));
    };
    if pool.profile == Profile::Pd && &*pool.runtime != "sglang" {
        let reason = format!(
            "InferencePool {name} runs {}, whose prefill and decode are not known",
            pool.runtime
        );
        return Err(("UnsupportedValue", reason));
    }
    Ok(Target::Pool(Arc::clone(pool)))
}
