//! Plans the changes after which every Gateway has its Service. Does no I/O.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::index::{GATEWAY_UID_LABEL, GatewayService, gateway_uid, targets};

/// Ports of the gateway's pods that Services lead to: below Linux's ephemeral range (32768 and up)
/// and above the privileged ports.
pub const TARGET_PORTS: RangeInclusive<u16> = 20_000..=29_999;
/// The label that names the creator of a Service.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "pd-router");
/// The Gateway API's label for objects that are created for a Gateway (GEP-1762).
const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Annotation with the Gateway of a Service, as `namespace/name`.
pub const GATEWAY_ANNOTATION: &str = "pd-router.io/gateway";
/// Maximum length in bytes of a label's value, and of a Service's name.
const MAX_NAME: usize = 63;
/// Maximum length of a Gateway's name within the name of its Service.
const MAX_GATEWAY_NAME: usize = 40;

/// The properties that all created Services share.
#[derive(Clone, Debug)]
pub struct ServiceTemplate {
    pub namespace: Arc<str>,
    /// `LoadBalancer`, `NodePort` or `ClusterIP`.
    pub type_: &'static str,
    /// Annotations of each Service, unless its Gateway sets them differently.
    pub annotations: BTreeMap<String, String>,
    /// Labels of the gateway's pods.
    pub selector: BTreeMap<String, String>,
}

/// One change of a Service.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceAction {
    Create(Box<Service>),
    /// The Service carries its resource version, so that a concurrent change makes it fail.
    Replace(Box<Service>),
    /// The Service's Gateway has been deleted or belongs to another controller.
    Delete(Box<Service>),
}

/// Returns the changes that turn `existing` into the Services that `wanted` needs.
pub fn plan(
    wanted: &[GatewayService],
    existing: &[Service],
    template: &ServiceTemplate,
) -> Vec<ServiceAction> {
    let mut known: HashMap<&str, &Service> = HashMap::new();
    let mut actions = Vec::new();
    let mut sorted: Vec<&Service> = existing.iter().collect();
    sorted.sort_by_key(|service| {
        let age = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (age.is_none(), age, service.metadata.name.clone())
    });
    for service in &sorted {
        let Some(uid) = gateway_uid(service) else { continue };
        let needed = wanted.iter().any(|gateway| gateway.uid == uid);
        if !needed || known.contains_key(uid) {
            actions.push(ServiceAction::Delete(Box::new((*service).clone())));
        } else {
            known.insert(uid, service);
        }
    }
    // Ports of Services that are deleted stay reserved: clients may still use them.
    let mut taken = HashMap::new();
    for service in sorted {
        let Some(uid) = gateway_uid(service) else { continue };
        for (port, target) in targets(service) {
            taken.entry(target).or_insert((uid.to_owned(), port));
        }
    }
    for wanted in wanted {
        match known.get(wanted.uid.as_str()) {
            _ if wanted.ports.is_empty() => {}
            Some(service) => {
                let changed = from_template(service, wanted, template, &mut taken);
                if changed != **service {
                    actions.push(ServiceAction::Replace(Box::new(changed)));
                }
            }
            None => {
                let service = from_template(&Service::default(), wanted, template, &mut taken);
                actions.push(ServiceAction::Create(Box::new(service)));
            }
        }
    }
    actions
}

/// Returns `old` with the wanted properties. Other properties are kept.
fn from_template(
    old: &Service,
    wanted: &GatewayService,
    template: &ServiceTemplate,
    taken: &mut HashMap<u16, (String, u16)>,
) -> Service {
    let new = old.metadata.name.is_none();
    let mut service = old.clone();
    let metadata = &mut service.metadata;
    if new {
        metadata.name = Some(name(wanted));
        metadata.namespace = Some(template.namespace.to_string());
    }
    put_metadata(metadata, wanted, template);
    let known = old.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let port = |&port: &u16| {
        let number = i32::from(port);
        let before = known.iter().find(|known| known.port == number);
        let kept = targets(old).find(|(known, target)| {
            let owner = taken.get(target);
            *known == port && owner.is_none_or(|(uid, of)| (uid, *of) == (&wanted.uid, port))
        });
        let target = match kept {
            Some((_, target)) => Some(target),
            None => free(&wanted.uid, port, taken),
        };
        let target = target?;
        taken.insert(target, (wanted.uid.clone(), port));
        Some(ServicePort {
            name: Some(format!("port-{port}")),
            port: number,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::Int(target.into())),
            ..before.cloned().unwrap_or_default()
        })
    };
    let ports = wanted.ports.iter().filter_map(port).collect();
    let spec = service.spec.get_or_insert_with(|| ServiceSpec {
        // Keeps the client's address, and avoids a second hop to a gateway on another node.
        external_traffic_policy: (template.type_ != "ClusterIP").then(|| "Local".to_owned()),
        ..ServiceSpec::default()
    });
    spec.ports = Some(ports);
    spec.type_ = Some(template.type_.to_owned());
    spec.selector = Some(template.selector.clone());
    if template.type_ == "ClusterIP" {
        spec.external_traffic_policy = None;
        spec.health_check_node_port = None;
        spec.ports.iter_mut().flatten().for_each(|port| port.node_port = None);
    }
    service
}

fn put_metadata(metadata: &mut ObjectMeta, wanted: &GatewayService, template: &ServiceTemplate) {
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(wanted.labels.clone());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    labels.insert(GATEWAY_UID_LABEL.to_owned(), wanted.uid.clone());
    if wanted.gateway.name.len() <= MAX_NAME {
        labels.insert(GATEWAY_NAME_LABEL.to_owned(), wanted.gateway.name.to_string());
    }
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.extend(template.annotations.clone());
    annotations.extend(wanted.annotations.clone());
    annotations.insert(GATEWAY_ANNOTATION.to_owned(), wanted.gateway.to_string());
}

/// A valid name of a Service that is unique per Gateway.
fn name(wanted: &GatewayService) -> String {
    let readable: String = wanted.gateway.name.chars().take(MAX_GATEWAY_NAME).collect();
    let unique: String = wanted.uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("gateway-{}-{unique}", readable.replace('.', "-"))
}

/// Returns a port that no Service uses. The search starts at a hash of Gateway and port, so that a
/// released port is not soon reused by another Gateway.
fn free(uid: &str, port: u16, taken: &HashMap<u16, (String, u16)>) -> Option<u16> {
    let (first, count) = (*TARGET_PORTS.start(), TARGET_PORTS.len());
    let start = router_core::fnv::fnv1a(uid.bytes().chain(port.to_be_bytes()));
    let start = usize::try_from(start % count as u64).unwrap_or_default();
    let offsets = (start..count).chain(0..start);
    let mut ports = offsets.filter_map(|offset| first.checked_add(u16::try_from(offset).ok()?));
    ports.find(|port| !taken.contains_key(port))
}

#[cfg(test)]
mod tests;
