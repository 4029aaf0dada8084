//! HTTPRoutes: their rules, and the listeners to which they are attached.

use std::sync::Arc;
use std::time::Duration;

use gateway_api::httproutes::{
    HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs,
    HttpRouteRulesFiltersRequestMirrorBackendRef as MirrorRef,
};
use router_core::fleet::{ObjectName, Profile};
use router_core::route::{
    AttachedRule, Backend, Filters, Hostname, Listener, Match, Mirror, Rule, Target, Timeouts,
};

use super::super::duration;
use super::super::objects::{
    GATEWAY_GROUP, Key, Kind, Object, POOL_GROUP_V1, POOL_GROUP_V1ALPHA2, kind_of, object_name,
};
use super::build::{Build, Subject, created};
use super::filters::{CompiledFilters, MirrorFilter};
use super::listeners::{Binding, PendingListener};
use super::policies::Policies;
use super::{Source, filters, grants, matches, ownership, services};

/// The parts of a rule that are the same on every listener.
struct RuleParts {
    index: usize,
    name: Option<String>,
    matches: Vec<Match>,
    timeouts: Timeouts,
    backends: Vec<Backend>,
}

/// Attaches every route to its listeners, and compiles the listeners: those that are served, and the
/// others.
pub(super) fn attach(
    build: &mut Build<'_>,
    mut pending_listeners: Vec<PendingListener<'_>>,
    policies: &Policies,
) -> (Vec<Listener>, Vec<Listener>) {
    for (source, object) in build.owned(Kind::HttpRoute) {
        let Object::HttpRoute(route) = object else { continue };
        let name = object_name(&route.metadata);
        let subject = Subject { source, kind: Kind::HttpRoute, name: &name };
        let Some(hostnames) = hostnames(build, subject, route) else { continue };
        let parts = rules(build, subject, route);
        for at in parents(build, subject, route, &pending_listeners, &hostnames) {
            let pending = &mut pending_listeners[at];
            let meets = |host: &&Hostname| {
                pending.hostname.as_ref().is_none_or(|listener| listener.intersects(host))
            };
            let hosts: Vec<Option<Hostname>> = match hostnames.is_empty() {
                true => vec![None],
                false => hostnames.iter().filter(meets).cloned().map(Some).collect(),
            };
            for part in &parts {
                let rule = Arc::new(rule(part, &name, route, pending, policies));
                for host in &hosts {
                    pending.attached.extend(part.matches.iter().map(|matching| AttachedRule {
                        hostname: host.clone(),
                        matching: matching.clone(),
                        rule: Arc::clone(&rule),
                    }));
                }
            }
        }
    }
    let (served, unserved): (Vec<_>, Vec<_>) =
        pending_listeners.into_iter().partition(|pending| pending.binding.is_some());
    let compile = |pending: Vec<_>| pending.into_iter().map(listener).collect();
    (compile(served), compile(unserved))
}

fn listener(pending: PendingListener<'_>) -> Listener {
    let name = pending.spec.name.as_str().into();
    let mut listener =
        Listener::new(pending.gateway, name, pending.port, pending.hostname, pending.attached);
    if let Some(Binding { socket_port, certificates }) = pending.binding {
        (listener.socket_port, listener.certificates) = (socket_port, certificates);
    }
    listener
}

fn rule(
    part: &RuleParts,
    name: &ObjectName,
    route: &HttpRoute,
    pending: &PendingListener<'_>,
    policies: &Policies,
) -> Rule {
    let of_policy = policies
        .of_route(name, part.name.as_deref())
        .or_else(|| policies.of_gateway(&pending.gateway, &pending.spec.name));
    let timeouts = part.timeouts.or(Timeouts { request: of_policy, backend_request: None });
    let age = created(&route.metadata);
    Rule::new(name.clone(), part.index, age, timeouts, part.backends.clone())
}

/// The route's host names, or `None` if it has some and all are invalid.
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
                build.add_problem(subject, field, "Invalid", format!("{text:?} {error}"));
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
    pending_listeners: &[PendingListener<'_>],
    hostnames: &[Hostname],
) -> Vec<usize> {
    let refs = route.spec.parent_refs.as_deref().unwrap_or_default();
    if refs.is_empty() {
        let reason = "is empty: the route is attached to no Gateway";
        build.add_problem(subject, "spec.parentRefs", "NoMatchingParent", reason);
    }
    let mut found = Vec::new();
    for (position, parent) in refs.iter().enumerate() {
        match listeners(build, subject, parent, pending_listeners, hostnames) {
            Ok(more) => found.extend(more),
            Err((code, reason)) => {
                build.add_problem(subject, format!("spec.parentRefs[{position}]"), code, reason);
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
    pending_listeners: &[PendingListener<'_>],
    hostnames: &[Hostname],
) -> Result<Vec<usize>, (&'static str, String)> {
    let route = subject.name;
    if *subject.source == Source::Cluster
        && !ownership::is_owned_parent(build.index, build.not_owned, route, parent)
    {
        // A route may also have parents of other controllers, which report on them.
        return Ok(Vec::new());
    }
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != (GATEWAY_GROUP, "Gateway") {
        return Err((
            "InvalidKind",
            format!("{} is not supported as a parent; use Gateway", kind_of(group, kind)),
        ));
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let gateway = ObjectName { namespace: namespace.into(), name: parent.name.as_str().into() };
    if build.index.get(&Key { kind: Kind::Gateway, name: gateway.clone() }).is_none() {
        return Err(("NoMatchingParent", format!("Gateway {gateway} does not exist")));
    }
    let mut left: Vec<usize> = (0..pending_listeners.len())
        .filter(|&at| {
            let pending = &pending_listeners[at];
            pending.gateway == gateway
                && parent.section_name.as_ref().is_none_or(|section| *section == pending.spec.name)
                && parent.port.is_none_or(|port| port == pending.spec.port)
        })
        .collect();
    if left.is_empty() {
        return Err((
            "NoMatchingParent",
            format!("Gateway {gateway} has no listener with this sectionName and port"),
        ));
    }
    left.retain(|&at| pending_listeners[at].allows(build.index, &route.namespace));
    if left.is_empty() {
        let reason =
            format!("no listener of Gateway {gateway} allows HTTPRoutes of this namespace");
        return Err(("NotAllowedByListeners", reason));
    }
    left.retain(|&at| {
        let listener = pending_listeners[at].hostname.as_ref();
        hostnames.is_empty()
            || listener
                .is_none_or(|listener| hostnames.iter().any(|host| listener.intersects(host)))
    });
    if left.is_empty() {
        let reason = format!("no listener of Gateway {gateway} matches a host name of the route");
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
                build.add_problem(subject, format!("{at}.{field}"), code, reason);
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
                build.add_problem(subject, format!("{at}.timeouts.{field}"), "Invalid", reason);
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
    let only = |target, filters| vec![Backend::new(1, target, filters)];
    let of_rule = match filters::compile(rule.filters.as_deref().unwrap_or_default()) {
        Ok(compiled) => compiled,
        Err((field, code, reason)) => {
            build.add_problem(subject, format!("{at}.{field}"), code, reason.as_str());
            return only(broken(reason), Filters::default());
        }
    };
    let refs = rule.backend_refs.as_deref().unwrap_or_default();
    if let Some(redirect) = of_rule.redirect {
        if !refs.is_empty() {
            let reason = "have no effect together with a RequestRedirect filter";
            build.add_problem(subject, format!("{at}.backendRefs"), "Invalid", reason);
        }
        return only(Target::Redirect(redirect), of_rule.filters);
    }
    if refs.is_empty() {
        return only(broken("the rule has no backendRefs"), of_rule.filters);
    }
    let of_all = mirrors(build, subject, of_rule.mirrors, at);
    let mut backends = Vec::new();
    for (position, reference) in refs.iter().enumerate() {
        let at = format!("{at}.backendRefs[{position}]");
        let weight = reference.weight.unwrap_or(1);
        let Ok(weight) = u32::try_from(weight) else {
            let reason = format!("{weight} must not be negative; this backend gets no requests");
            build.add_problem(subject, format!("{at}.weight"), "Invalid", reason);
            continue;
        };
        let (target, own) = backend(build, subject, reference, &at);
        let mut mirrors = of_all.clone();
        mirrors.extend(self::mirrors(build, subject, own.mirrors, &at));
        let filters = of_rule.filters.then(own.filters);
        backends.push(Backend { weight, target, filters, mirrors });
    }
    backends
}

fn backend(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    reference: &HttpRouteRulesBackendRefs,
    at: &str,
) -> (Target, CompiledFilters) {
    let mut own = match filters::compile_backend(reference.filters.as_deref().unwrap_or_default()) {
        Ok(own) => own,
        Err((field, code, reason)) => {
            build.add_problem(subject, format!("{at}.{field}"), code, reason.as_str());
            return (broken(reason), CompiledFilters::default());
        }
    };
    let target = match (own.redirect.take(), target(build, subject.name, reference)) {
        (Some(redirect), _) => Target::Redirect(redirect),
        (None, Ok(target)) => target,
        (None, Err((code, reason))) => {
            let problem = format!("{reason}; its share of the requests gets 500");
            build.add_problem(subject, at, code, problem);
            broken(reason)
        }
    };
    (target, own)
}

/// The mirrors whose backends exist. A mirror without one gets no requests; those of the rule are
/// served as without it.
fn mirrors(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    filters: Vec<MirrorFilter>,
    at: &str,
) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    for MirrorFilter { field, reference, share } in filters {
        let MirrorRef { group, kind, name, namespace, port } = reference;
        let reference = HttpRouteRulesBackendRefs {
            group,
            kind,
            name,
            namespace,
            port,
            ..HttpRouteRulesBackendRefs::default()
        };
        match target(build, subject.name, &reference) {
            Ok(target) => mirrors.push(Mirror { target, share }),
            Err((code, reason)) => {
                let problem = format!("{reason}; no request is mirrored to it");
                build.add_problem(subject, format!("{at}.{field}"), code, problem);
            }
        }
    }
    mirrors
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
            let reason = format!("{} is not supported as a backend", kind_of(group, kind));
            return Err(("InvalidKind", reason));
        }
    };
    if !grants::permits(build.index, ("HTTPRoute", &route.namespace), group, kind, &name) {
        let reason = format!("no ReferenceGrant allows this route to reference {kind} {name}");
        return Err(("RefNotPermitted", reason));
    }
    let Some(pool) = pool else {
        return Ok(Target::Service(services::resolve(build, &name, reference.port)?));
    };
    let Some(pool) = build.pools.get(&(pool, name.clone())) else {
        return Err(("BackendNotFound", format!("InferencePool {name} of {group} does not exist")));
    };
    if pool.profile == Profile::Pd && &*pool.runtime != "sglang" {
        let reason = format!(
            "InferencePool {name} has runtime {}, which is not supported with profile pd",
            pool.runtime
        );
        return Err(("UnsupportedValue", reason));
    }
    Ok(Target::Pool(Arc::clone(pool)))
}
