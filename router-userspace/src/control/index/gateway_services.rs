//! The Services in front of a cluster's Gateways: their addresses, and the ports of this process
//! that they target.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use gateway_api::gateways::Gateway;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use router_core::fleet::ObjectName;

use super::super::objects::{Key, Kind, Object, object_name};
use super::build::created;
use super::{Index, Source, ownership};

/// Label of a Service that pd-router created: the UID of its Gateway.
pub(in crate::control) const GATEWAY_UID_LABEL: &str = "pd-router.io/gateway-uid";

/// How clients reach Gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// At the ports of their listeners, on the addresses of this host.
    #[default]
    Direct,
    /// Through this existing Service, whose ports are those of the listeners.
    Shared(ObjectName),
    /// Each Gateway through its own Service, which pd-router creates in this namespace.
    Each { namespace: Arc<str> },
}

/// The Service that a Gateway needs.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayService {
    pub gateway: ObjectName,
    pub uid: String,
    /// The ports of the Gateway's listeners.
    pub ports: Vec<u16>,
    /// Labels and annotations of `spec.infrastructure`.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// Ports and addresses of the existing Services, by the UID of their Gateway.
#[derive(Debug)]
pub(super) enum ObservedServices {
    Direct,
    Shared(Vec<String>),
    Each(HashMap<String, (BTreeMap<u16, u16>, Vec<String>)>),
}

impl ObservedServices {
    pub(super) fn read(index: &Index) -> ObservedServices {
        match &index.exposure {
            Exposure::Direct => ObservedServices::Direct,
            Exposure::Shared(name) => {
                let key = Key { kind: Kind::Service, name: name.clone() };
                ObservedServices::Shared(match index.get(&key) {
                    Some(Object::Service(service)) => addresses(service),
                    _ => Vec::new(),
                })
            }
            Exposure::Each { .. } => ObservedServices::Each(each(index)),
        }
    }

    /// The port of this process for a port of a Gateway, or `None` while no Service targets one.
    pub(super) fn socket_port(&self, gateway: &Gateway, port: u16) -> Option<u16> {
        match self {
            ObservedServices::Direct | ObservedServices::Shared(_) => Some(port),
            ObservedServices::Each(all) => {
                let uid = gateway.metadata.uid.as_deref()?;
                all.get(uid)?.0.get(&port).copied()
            }
        }
    }

    pub(super) fn addresses(&self, gateway: &Gateway) -> Vec<String> {
        match self {
            ObservedServices::Direct => Vec::new(),
            ObservedServices::Shared(addresses) => addresses.clone(),
            ObservedServices::Each(all) => {
                let service = gateway.metadata.uid.as_deref().and_then(|uid| all.get(uid));
                service.map(|(_, addresses)| addresses.clone()).unwrap_or_default()
            }
        }
    }

    /// Whether Gateways share the ports of this process.
    pub(super) fn shared(&self) -> bool {
        !matches!(self, ObservedServices::Each(_))
    }
}

/// Reads the Services of all Gateways. If two Services target the same port, the older one is used.
fn each(index: &Index) -> HashMap<String, (BTreeMap<u16, u16>, Vec<String>)> {
    let mut services: Vec<&Service> = services(index).collect();
    services.sort_by_key(|service| {
        let age = created(&service.metadata);
        (age.is_none(), age, object_name(&service.metadata))
    });
    let mut taken = HashSet::new();
    let mut by_uid = HashMap::new();
    for service in services {
        let Some(uid) = gateway_uid(service) else { continue };
        let mut ports = BTreeMap::new();
        for (port, target) in targets(service) {
            if taken.insert(target) {
                ports.insert(port, target);
            }
        }
        by_uid.entry(uid.to_owned()).or_insert((ports, addresses(service)));
    }
    by_uid
}

/// The Services that pd-router created.
pub(super) fn services(index: &Index) -> impl Iterator<Item = &Service> {
    let namespace = match &index.exposure {
        Exposure::Each { namespace } => Some(&**namespace),
        _ => None,
    };
    index.of_kind(Kind::Service).filter_map(move |(source, object)| match object {
        Object::Service(service)
            if *source == Source::Cluster
                && service.metadata.namespace.as_deref() == namespace
                && gateway_uid(service).is_some() =>
        {
            Some(service)
        }
        _ => None,
    })
}

/// The UID of the Gateway of a Service that pd-router created.
pub(in crate::control) fn gateway_uid(service: &Service) -> Option<&str> {
    let labels = service.metadata.labels.as_ref()?;
    labels.get(GATEWAY_UID_LABEL).map(String::as_str).filter(|uid| !uid.is_empty())
}

/// Each port of a Service with the port of this process that it targets.
pub(in crate::control) fn targets(service: &Service) -> impl Iterator<Item = (u16, u16)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(|port| match port.target_port {
        Some(IntOrString::Int(target)) => {
            let target = u16::try_from(target).ok().filter(|target| *target > 0)?;
            Some((u16::try_from(port.port).ok()?, target))
        }
        _ => None,
    })
}

/// The Services that the Gateways of this controller need.
pub(super) fn wanted(index: &Index) -> Vec<GatewayService> {
    if !matches!(index.exposure, Exposure::Each { .. }) {
        return Vec::new();
    }
    let not_owned = ownership::not_owned(index);
    let all = index.of_kind(Kind::Gateway).filter(|(source, _)| **source == Source::Cluster);
    all.filter(|(_, object)| !not_owned.contains(&object.key()))
        .filter_map(|(_, object)| match object {
            Object::Gateway(gateway) => Some(gateway),
            _ => None,
        })
        .filter_map(|gateway| {
            let listeners = gateway.spec.listeners.iter();
            let served = listeners.filter(|one| matches!(one.protocol.as_str(), "HTTP" | "HTTPS"));
            let mut ports: Vec<u16> =
                served.filter_map(|one| u16::try_from(one.port).ok()).filter(|p| *p > 0).collect();
            ports.sort_unstable();
            ports.dedup();
            let infrastructure = gateway.spec.infrastructure.as_ref();
            Some(GatewayService {
                gateway: object_name(&gateway.metadata),
                uid: gateway.metadata.uid.clone()?,
                ports,
                labels: infrastructure.and_then(|all| all.labels.clone()).unwrap_or_default(),
                annotations: infrastructure
                    .and_then(|all| all.annotations.clone())
                    .unwrap_or_default(),
            })
        })
        .collect()
}

/// The addresses of a Service: those of its load balancer, else its cluster IP.
fn addresses(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer") {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
        let address = |one: &LoadBalancerIngress| one.ip.clone().or_else(|| one.hostname.clone());
        return ingress.iter().filter_map(address).collect();
    }
    let ip = spec.and_then(|spec| spec.cluster_ip.clone());
    ip.filter(|ip| !ip.is_empty() && ip != "None").into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_load_balancer_without_an_ingress_has_no_address() {
        let cluster = service(json!({"spec": {"clusterIP": "10.96.0.7"}}));
        assert_eq!(addresses(&cluster), ["10.96.0.7"]);
        let headless = service(json!({"spec": {"clusterIP": "None"}}));
        assert_eq!(addresses(&headless), Vec::<String>::new());
        let balancer = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7"}});
        assert_eq!(addresses(&service(balancer.clone())), Vec::<String>::new());
        let mut balancer = balancer;
        balancer["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb"}]}});
        assert_eq!(addresses(&service(balancer)), ["192.0.2.1", "lb"]);
    }

    fn gateway_service(name: &str, age: u32, port: u16, target: u16) -> Object {
        Object::Service(service(json!({
            "metadata": {
                "name": name, "namespace": "own", "labels": {GATEWAY_UID_LABEL: name},
                "creationTimestamp": format!("2026-01-{age:02}T00:00:00Z"),
            },
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": port, "targetPort": target}]},
        })))
    }

    fn gateway(uid: &str) -> Gateway {
        let value = json!({
            "metadata": {"name": uid, "namespace": "n", "uid": uid},
            "spec": {"gatewayClassName": "c", "listeners": []},
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn each_gateway_has_the_ports_and_the_address_of_its_own_service() {
        let exposure = Exposure::Each { namespace: "own".into() };
        let mut index = Index { exposure, ..Index::default() };
        for object in [gateway_service("a", 2, 80, 20_001), gateway_service("b", 1, 80, 20_002)] {
            index.apply(Source::Cluster, object);
        }
        // Created by two replicas at once: the older one is used.
        index.apply(Source::Cluster, gateway_service("c", 3, 80, 20_001));
        let services = ObservedServices::read(&index);
        assert_eq!(services.socket_port(&gateway("a"), 80), Some(20_001));
        assert_eq!(services.socket_port(&gateway("b"), 80), Some(20_002));
        assert_eq!(services.socket_port(&gateway("c"), 80), None);
        assert_eq!(services.socket_port(&gateway("a"), 81), None);
        assert_eq!(services.addresses(&gateway("a")), ["10.0.0.1"]);
        assert_eq!(services.addresses(&gateway("gone")), Vec::<String>::new());
    }

    #[test]
    fn a_service_in_another_namespace_is_ignored() {
        let mut index = Index {
            exposure: Exposure::Each { namespace: "elsewhere".into() },
            ..Index::default()
        };
        index.apply(Source::Cluster, gateway_service("a", 1, 80, 20_001));
        assert_eq!(ObservedServices::read(&index).socket_port(&gateway("a"), 80), None);
    }
}
