//! Builds a [`ServiceBackend`] from a Service and its EndpointSlices or pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use router_core::fleet::{ObjectName, Phase, ServiceBackend, WorkerKey};

use super::super::objects::{Key, Kind, Object};
use super::build::Build;
use super::pods::{PodSummary, PodView};
use super::readiness;

/// The label with the name of an EndpointSlice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An endpoint of a Service.
struct ServiceEndpoint {
    address: SocketAddr,
    /// The pod's UID, or the address as text.
    uid: Arc<str>,
    name: Arc<str>,
    phase: Phase,
}

/// Resolves the Service and port that a route references. The error is a code and a reason.
pub(super) fn resolve(
    build: &mut Build<'_>,
    name: &ObjectName,
    port: Option<i32>,
) -> Result<Arc<ServiceBackend>, (&'static str, String)> {
    let key = Key { kind: Kind::Service, name: name.clone() };
    let Some(Object::Service(service)) = build.index.get(&key) else {
        return Err(("BackendNotFound", format!("Service {name} does not exist")));
    };
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) else {
        return Err(("Invalid", format!("port is required for Service {name}")));
    };
    if let Some(known) = build.services.get(&(name.clone(), port)) {
        return Ok(Arc::clone(known));
    }
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        let reason = format!("Service {name} has type ExternalName, which is not supported");
        return Err(("UnsupportedValue", reason));
    }
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let is_tcp = |known: &&ServicePort| known.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let mut ports = ports.iter().filter(is_tcp);
    let Some(of_service) = ports.find(|known| known.port == i32::from(port)) else {
        return Err(("BackendNotFound", format!("Service {name} has no port {port}")));
    };
    let tls = build.tls.of_port(name, of_service.name.as_deref())?;
    let mut endpoints: BTreeMap<SocketAddr, ServiceEndpoint> = BTreeMap::new();
    for endpoint in find(build, name, service, of_service) {
        // An address in two slices, or of a pod that is gone and of its successor, is ready if it is ready
        // in one of them.
        let known = endpoints.get(&endpoint.address).map(|known| known.phase);
        if known.is_none_or(|known| known != Phase::Ready && endpoint.phase == Phase::Ready) {
            endpoints.insert(endpoint.address, endpoint);
        }
    }
    let mut worker = |endpoint: ServiceEndpoint| {
        let key = WorkerKey { uid: endpoint.uid, address: endpoint.address };
        (build.worker(key, &endpoint.name), endpoint.phase)
    };
    let endpoints = endpoints.into_values().map(&mut worker).collect();
    let endpoints = readiness::ready_endpoints(build, name, port, endpoints);
    let h2c = of_service.app_protocol.as_deref() == Some("kubernetes.io/h2c");
    let backend = Arc::new(ServiceBackend { name: name.clone(), port, h2c, tls, endpoints });
    build.services.insert((name.clone(), port), Arc::clone(&backend));
    Ok(backend)
}

/// The endpoints of the Service's slices, or of the pods that it selects if it has no slice.
fn find(
    build: &Build<'_>,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
) -> Vec<ServiceEndpoint> {
    let slices: Vec<&EndpointSlice> = build
        .index
        .of_kind(Kind::EndpointSlice)
        .filter_map(|(_, object)| match object {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        })
        .filter(|slice| {
            let label = slice.metadata.labels.as_ref().and_then(|all| all.get(SERVICE_LABEL));
            slice.metadata.namespace.as_deref().unwrap_or("default") == &*name.namespace
                && label.is_some_and(|service| **service == *name.name)
        })
        .collect();
    if slices.is_empty() {
        return of_pods(build, name, service, port);
    }
    slices.into_iter().flat_map(|slice| of_slice(build, name, slice, port)).collect()
}

fn of_slice(
    build: &Build<'_>,
    service: &ObjectName,
    slice: &EndpointSlice,
    port: &ServicePort,
) -> Vec<ServiceEndpoint> {
    // A port without a name matches a port without a name.
    let named = |name: &Option<String>| name.clone().unwrap_or_default();
    let number = slice.ports.iter().flatten().find(|known| named(&known.name) == named(&port.name));
    let number = number.and_then(|known| known.port).and_then(|port| u16::try_from(port).ok());
    let Some(number) = number else { return Vec::new() };
    let mut found = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let conditions = endpoint.conditions.as_ref();
        let terminating = conditions.and_then(|conditions| conditions.terminating);
        let phase = match conditions.and_then(|conditions| conditions.ready).unwrap_or(true) {
            true => Phase::Ready,
            false if terminating == Some(true) => Phase::Draining,
            false => Phase::NotReady,
        };
        let Some(ip) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok())
        else {
            continue;
        };
        let address = SocketAddr::new(ip, number);
        let pod = endpoint.target_ref.as_ref().filter(|at| at.kind.as_deref() == Some("Pod"));
        let (uid, name) = match pod.and_then(|at| at.name.as_deref()) {
            Some(pod) => {
                let label: Arc<str> = format!("{}/{pod}", service.namespace).into();
                let uid = endpoint.target_ref.as_ref().and_then(|at| at.uid.as_deref());
                (
                    uid.map_or_else(|| uid_of(build, &service.namespace, pod, &label), Into::into),
                    label,
                )
            }
            None => (ip.to_string().into(), address.to_string().into()),
        };
        found.push(ServiceEndpoint { address, uid, name, phase });
    }
    found
}

fn uid_of(build: &Build<'_>, namespace: &str, pod: &str, label: &Arc<str>) -> Arc<str> {
    let pods = build.pods.get(namespace).map(Vec::as_slice).unwrap_or_default();
    let known = pods.iter().find(|view| *view.summary.name.name == *pod);
    known.map_or_else(|| Arc::clone(label), |view| Arc::clone(&view.summary.uid))
}

fn of_pods(
    build: &Build<'_>,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
) -> Vec<ServiceEndpoint> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let Some(selector) = selector else { return Vec::new() };
    let pods = build.pods.get(&name.namespace).map(Vec::as_slice).unwrap_or_default();
    let selected = pods.iter().filter(|pod| pod.selected_by(selector));
    let endpoint = |pod: &PodView<'_>| {
        // A Service may select every node of a multi-node engine, so the node index is not checked.
        let ip = pod.pod.status.as_ref()?.pod_ip.as_deref()?.parse::<IpAddr>().ok()?;
        let number = target_port(pod.pod, port)?;
        let PodSummary { uid, full_name, .. } = pod.summary;
        Some(ServiceEndpoint {
            address: SocketAddr::new(ip, number),
            uid: Arc::clone(uid),
            name: Arc::clone(full_name),
            phase: pod.phase(build.index),
        })
    };
    selected.filter_map(endpoint).collect()
}

fn target_port(pod: &Pod, port: &ServicePort) -> Option<u16> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = &pod.spec.as_ref()?.containers;
            let ports = containers.iter().filter_map(|container| container.ports.as_ref());
            let named = ports.flatten().find(|port| port.name.as_deref() == Some(name.as_str()));
            named?.container_port
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}
