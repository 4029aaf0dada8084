//! The listeners of all Gateways, before routes are attached to them.

use std::collections::{BTreeMap, HashMap, HashSet};

use gateway_api::gateways::{
    Gateway, GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From,
    GatewayListenersAllowedRoutesNamespacesSelector as Selector, GatewayListenersTlsMode,
};
use router_core::fleet::ObjectName;
use router_core::route::{AttachedRule, Hostname, ServerCertificate};

use super::super::objects::{GATEWAY_GROUP, Key, Kind, Object, kind_of, object_name};
use super::build::{Build, Subject, created};
use super::fronts::Fronts;
use super::{Index, certificates};

/// A listener that routes may be attached to.
pub(super) struct Frame<'a> {
    pub(super) gateway: ObjectName,
    pub(super) spec: &'a GatewayListeners,
    pub(super) port: u16,
    pub(super) hostname: Option<Hostname>,
    /// `None` where the listener has a problem of its own, or no Service leads to it yet: routes may
    /// name it, nobody listens.
    pub(super) bound: Option<Bound>,
    pub(super) attached: Vec<AttachedRule>,
}

/// What it takes to listen.
pub(super) struct Bound {
    pub(super) socket_port: u16,
    pub(super) certificates: Vec<ServerCertificate>,
}

/// What listeners exclude each other by. Gateways have ports apart where each has its own Service.
#[derive(Default)]
struct Taken {
    hosts: HashSet<(Option<ObjectName>, u16, Option<Hostname>)>,
    protocols: HashMap<(Option<ObjectName>, u16), String>,
}

/// All listeners; on one port and host name, the older Gateway's counts, then the first by name.
pub(super) fn frames<'a>(build: &mut Build<'a>) -> Vec<Frame<'a>> {
    let mut gateways: Vec<_> = build
        .ours(Kind::Gateway)
        .filter_map(|(source, object)| match object {
            Object::Gateway(gateway) => Some((source, object_name(&gateway.metadata), gateway)),
            _ => None,
        })
        .collect();
    gateways.sort_by_key(|(_, name, gateway)| {
        let age = created(&gateway.metadata);
        (age.is_none(), age, name.clone())
    });
    let fronts = Fronts::read(build.index);
    let mut frames = Vec::new();
    let mut taken = Taken::default();
    for (source, name, gateway) in gateways {
        let subject = Subject { source, kind: Kind::Gateway, name: &name };
        read(build, subject, gateway, &fronts, &mut taken, &mut frames);
    }
    frames
}

fn read<'a>(
    build: &mut Build<'a>,
    subject: Subject<'_>,
    gateway: &'a Gateway,
    fronts: &Fronts,
    taken: &mut Taken,
    frames: &mut Vec<Frame<'a>>,
) {
    let mut names = HashSet::new();
    let scope = (!fronts.shared()).then(|| subject.name.clone());
    let parameters =
        gateway.spec.infrastructure.as_ref().and_then(|all| all.parameters_ref.as_ref());
    if let Some(parameters) = parameters {
        let named = kind_of(&parameters.group, &parameters.kind);
        let reason =
            format!("{named} is not read, as no parameters are; the Gateway is not served");
        let field = "spec.infrastructure.parametersRef";
        build.complain(subject, field, "InvalidParameters", reason);
    }
    for (position, spec) in gateway.spec.listeners.iter().enumerate() {
        let at = format!("spec.listeners[{position}]");
        let checked = check(spec).and_then(|(port, hostname)| {
            if !names.insert(spec.name.as_str()) {
                let reason = format!("a listener before has the name {:?} too", spec.name);
                return Err(("name", "Conflicted", reason));
            }
            taken.take(&scope, port, &hostname, &spec.protocol)?;
            Ok((port, hostname))
        });
        let (port, hostname, bound) = match checked {
            Ok((port, hostname)) => {
                let socket_port = fronts.socket_port(gateway, port);
                let bound = bind(build, subject, spec, &at, socket_port);
                (port, hostname, bound.filter(|_| parameters.is_none()))
            }
            Err((field, code, reason)) => {
                let reason = format!("{reason}; the listener is not served");
                build.complain(subject, format!("{at}.{field}"), code, reason);
                (u16::try_from(spec.port).unwrap_or_default(), None, None)
            }
        };
        unknown_kinds(build, subject, spec, &at);
        let gateway = subject.name.clone();
        frames.push(Frame { gateway, spec, port, hostname, bound, attached: Vec::new() });
    }
}

impl Taken {
    fn take(
        &mut self,
        scope: &Option<ObjectName>,
        port: u16,
        hostname: &Option<Hostname>,
        protocol: &str,
    ) -> Result<(), Fault> {
        let first = self.protocols.entry((scope.clone(), port)).or_insert_with(|| protocol.into());
        if first != protocol {
            let reason = format!("a listener before has this port for {first}");
            return Err(("protocol", "ProtocolConflict", reason));
        }
        if !self.hosts.insert((scope.clone(), port, hostname.clone())) {
            let reason = "a listener before has this port and host name".to_owned();
            return Err(("port", "HostnameConflict", reason));
        }
        Ok(())
    }
}

/// What a listener without a problem of its own listens with.
fn bind(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &GatewayListeners,
    at: &str,
    socket_port: Option<u16>,
) -> Option<Bound> {
    let certificates = match spec.protocol.as_str() {
        "HTTPS" => {
            let certificates = certificates::resolve(build, subject, spec, at);
            if certificates.is_empty() {
                return None;
            }
            certificates
        }
        _ => Vec::new(),
    };
    Some(Bound { socket_port: socket_port?, certificates })
}

type Fault = (&'static str, &'static str, String);

fn check(spec: &GatewayListeners) -> Result<(u16, Option<Hostname>), Fault> {
    let protocol = spec.protocol.as_str();
    if !matches!(protocol, "HTTP" | "HTTPS") {
        let reason = format!("protocol {protocol:?} is not served; HTTP and HTTPS are");
        return Err(("protocol", "UnsupportedProtocol", reason));
    }
    let mode = spec.tls.as_ref().and_then(|tls| tls.mode.as_ref());
    if protocol == "HTTPS" && matches!(mode, Some(GatewayListenersTlsMode::Passthrough)) {
        let reason = "TLS ends here on an HTTPS listener; Passthrough is not served".to_owned();
        return Err(("tls.mode", "Invalid", reason));
    }
    let port = u16::try_from(spec.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| ("port", "Invalid", format!("{} is no port", spec.port)))?;
    let hostname = match spec.hostname.as_deref().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(
            Hostname::parse(text)
                .map_err(|error| ("hostname", "Invalid", format!("{text:?} {error}")))?,
        ),
    };
    Ok((port, hostname))
}

fn unknown_kinds(build: &mut Build<'_>, subject: Subject<'_>, spec: &GatewayListeners, at: &str) {
    let kinds = spec.allowed_routes.iter().filter_map(|allowed| allowed.kinds.as_ref()).flatten();
    for (position, kind) in kinds.enumerate() {
        let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
        if (group, kind.kind.as_str()) != (GATEWAY_GROUP, "HTTPRoute") {
            let field = format!("{at}.allowedRoutes.kinds[{position}]");
            let reason = format!("{} is not served; HTTPRoute is", kind_of(group, &kind.kind));
            build.complain(subject, field, "InvalidRouteKinds", reason);
        }
    }
}

impl Frame<'_> {
    /// Whether HTTPRoutes of `namespace` may be attached.
    pub(super) fn allows(&self, index: &Index, namespace: &str) -> bool {
        let Some(allowed) = &self.spec.allowed_routes else {
            return namespace == &*self.gateway.namespace;
        };
        let kind = allowed.kinds.as_ref().is_none_or(|kinds| {
            kinds.is_empty()
                || kinds.iter().any(|kind| {
                    let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
                    (group, kind.kind.as_str()) == (GATEWAY_GROUP, "HTTPRoute")
                })
        });
        let namespaces = allowed.namespaces.as_ref();
        kind && match namespaces.and_then(|namespaces| namespaces.from.as_ref()) {
            None | Some(From::Same) => namespace == &*self.gateway.namespace,
            Some(From::All) => true,
            Some(From::Selector) => namespaces
                .and_then(|namespaces| namespaces.selector.as_ref())
                .is_some_and(|selector| selects(selector, &labels(index, namespace))),
        }
    }
}

/// A namespace's labels. One that no object describes has the label that every namespace has.
fn labels(index: &Index, namespace: &str) -> BTreeMap<String, String> {
    let name = ObjectName { namespace: "default".into(), name: namespace.into() };
    let mut labels = match index.get(&Key { kind: Kind::Namespace, name }) {
        Some(object) => object.metadata().labels.clone().unwrap_or_default(),
        None => BTreeMap::new(),
    };
    labels.entry("kubernetes.io/metadata.name".into()).or_insert_with(|| namespace.into());
    labels
}

fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    let same = |(name, value): (&String, &String)| labels.get(name) == Some(value);
    selector.match_labels.iter().flatten().all(same)
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = labels.get(&expression.key);
            let listed = || {
                let values = expression.values.as_deref().unwrap_or_default();
                value.is_some_and(|value| values.contains(value))
            };
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
