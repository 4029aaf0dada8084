//! The listeners of all Gateways, before routes are attached.

use std::collections::{BTreeMap, HashMap, HashSet};

use gateway_api::gateways::{
    Gateway, GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From,
    GatewayListenersAllowedRoutesNamespacesSelector as Selector, GatewayListenersTlsMode,
};
use router_core::fleet::ObjectName;
use router_core::route::{AttachedRule, Hostname, ServerCertificate};

use super::super::objects::{GATEWAY_GROUP, Key, Kind, Object, kind_of, object_name};
use super::build::{Build, Subject, created};
use super::gateway_services::ObservedServices;
use super::{Index, certificates};

/// A listener that routes may be attached to.
pub(super) struct PendingListener<'a> {
    pub(super) gateway: ObjectName,
    pub(super) spec: &'a GatewayListeners,
    pub(super) port: u16,
    pub(super) hostname: Option<Hostname>,
    /// `None` if the listener is invalid, or if no Service targets it yet. Routes may be attached to
    /// it, but no socket is opened.
    pub(super) binding: Option<Binding>,
    pub(super) attached: Vec<AttachedRule>,
}

/// The socket port and the certificates of a listener.
pub(super) struct Binding {
    pub(super) socket_port: u16,
    pub(super) certificates: Vec<ServerCertificate>,
}

/// Ports and host names that are in use. Each Gateway has its own ports if it has its own Service.
#[derive(Default)]
struct Claims {
    hosts: HashSet<(Option<ObjectName>, u16, Option<Hostname>)>,
    protocols: HashMap<(Option<ObjectName>, u16), String>,
}

/// Reads all listeners. On the same port and host name, the listener of the older Gateway wins, then
/// the first by name.
pub(super) fn pending_listeners<'a>(build: &mut Build<'a>) -> Vec<PendingListener<'a>> {
    let mut gateways: Vec<_> = build
        .owned(Kind::Gateway)
        .filter_map(|(source, object)| match object {
            Object::Gateway(gateway) => Some((source, object_name(&gateway.metadata), gateway)),
            _ => None,
        })
        .collect();
    gateways.sort_by_key(|(_, name, gateway)| {
        let age = created(&gateway.metadata);
        (age.is_none(), age, name.clone())
    });
    let services = ObservedServices::read(build.index);
    let mut pending_listeners = Vec::new();
    let mut claims = Claims::default();
    for (source, name, gateway) in gateways {
        let subject = Subject { source, kind: Kind::Gateway, name: &name };
        read(build, subject, gateway, &services, &mut claims, &mut pending_listeners);
    }
    pending_listeners
}

fn read<'a>(
    build: &mut Build<'a>,
    subject: Subject<'_>,
    gateway: &'a Gateway,
    services: &ObservedServices,
    claims: &mut Claims,
    pending_listeners: &mut Vec<PendingListener<'a>>,
) {
    let mut names = HashSet::new();
    let scope = (!services.shared()).then(|| subject.name.clone());
    let parameters =
        gateway.spec.infrastructure.as_ref().and_then(|all| all.parameters_ref.as_ref());
    if let Some(parameters) = parameters {
        let named = kind_of(&parameters.group, &parameters.kind);
        let reason = format!("{named} is not supported; the Gateway is not served");
        let field = "spec.infrastructure.parametersRef";
        build.add_problem(subject, field, "InvalidParameters", reason);
    }
    for (position, spec) in gateway.spec.listeners.iter().enumerate() {
        let at = format!("spec.listeners[{position}]");
        let checked = check(spec).and_then(|(port, hostname)| {
            if !names.insert(spec.name.as_str()) {
                let reason = format!("an earlier listener has the same name {:?}", spec.name);
                return Err(("name", "Conflicted", reason));
            }
            claims.claim(&scope, port, &hostname, &spec.protocol)?;
            Ok((port, hostname))
        });
        let (port, hostname, binding) = match checked {
            Ok((port, hostname)) => {
                let socket_port = services.socket_port(gateway, port);
                let binding = bind(build, subject, spec, &at, socket_port);
                (port, hostname, binding.filter(|_| parameters.is_none()))
            }
            Err((field, code, reason)) => {
                let reason = format!("{reason}; the listener is not served");
                build.add_problem(subject, format!("{at}.{field}"), code, reason);
                (u16::try_from(spec.port).unwrap_or_default(), None, None)
            }
        };
        report_unknown_kinds(build, subject, spec, &at);
        let gateway = subject.name.clone();
        pending_listeners.push(PendingListener {
            gateway,
            spec,
            port,
            hostname,
            binding,
            attached: Vec::new(),
        });
    }
}

impl Claims {
    fn claim(
        &mut self,
        scope: &Option<ObjectName>,
        port: u16,
        hostname: &Option<Hostname>,
        protocol: &str,
    ) -> Result<(), ListenerError> {
        let first = self.protocols.entry((scope.clone(), port)).or_insert_with(|| protocol.into());
        if first != protocol {
            let reason = format!("an earlier listener uses this port with protocol {first}");
            return Err(("protocol", "ProtocolConflict", reason));
        }
        if !self.hosts.insert((scope.clone(), port, hostname.clone())) {
            let reason = "an earlier listener has the same port and host name".to_owned();
            return Err(("port", "HostnameConflict", reason));
        }
        Ok(())
    }
}

/// Returns the binding of a valid listener.
fn bind(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &GatewayListeners,
    at: &str,
    socket_port: Option<u16>,
) -> Option<Binding> {
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
    Some(Binding { socket_port: socket_port?, certificates })
}

type ListenerError = (&'static str, &'static str, String);

/// Whether listeners of this protocol are served.
pub(super) fn is_served_protocol(protocol: &str) -> bool {
    matches!(protocol, "HTTP" | "HTTPS")
}

fn check(spec: &GatewayListeners) -> Result<(u16, Option<Hostname>), ListenerError> {
    let protocol = spec.protocol.as_str();
    if !is_served_protocol(protocol) {
        let reason = format!("protocol {protocol:?} is not supported; use HTTP or HTTPS");
        return Err(("protocol", "UnsupportedProtocol", reason));
    }
    let mode = spec.tls.as_ref().and_then(|tls| tls.mode.as_ref());
    if protocol == "HTTPS" && matches!(mode, Some(GatewayListenersTlsMode::Passthrough)) {
        let reason = "Passthrough is not supported on an HTTPS listener; use Terminate".to_owned();
        return Err(("tls.mode", "Invalid", reason));
    }
    let port = u16::try_from(spec.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| {
        ("port", "Invalid", format!("{} must be a port from 1 to 65535", spec.port))
    })?;
    let hostname = match spec.hostname.as_deref().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(
            Hostname::parse(text)
                .map_err(|error| ("hostname", "Invalid", format!("{text:?} {error}")))?,
        ),
    };
    Ok((port, hostname))
}

fn report_unknown_kinds(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &GatewayListeners,
    at: &str,
) {
    let kinds = spec.allowed_routes.iter().filter_map(|allowed| allowed.kinds.as_ref()).flatten();
    for (position, kind) in kinds.enumerate() {
        let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
        if (group, kind.kind.as_str()) != (GATEWAY_GROUP, "HTTPRoute") {
            let field = format!("{at}.allowedRoutes.kinds[{position}]");
            let reason = format!("{} is not supported; use HTTPRoute", kind_of(group, &kind.kind));
            build.add_problem(subject, field, "InvalidRouteKinds", reason);
        }
    }
}

impl PendingListener<'_> {
    /// Whether HTTPRoutes of `namespace` may be attached to this listener.
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

/// The labels of a namespace. Without a Namespace object, only the label that every namespace has.
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
