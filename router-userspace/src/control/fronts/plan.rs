//! What is to be done so that every Gateway has its Service. Pure: Gateways and Services in, steps
//! out.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::index::{Front, GATEWAY_UID_LABEL, gateway_uid, targets};

/// Where our replicas listen: no port of a Linux that opens connections of its own, and none that
/// needs a privilege.
pub const TARGET_PORTS: RangeInclusive<u16> = 20_000..=29_999;
/// Who made a Service.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "pd-router");
/// The Gateway API's own label for what is made for a Gateway (GEP-1762).
const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// For readers: which Gateway a Service stands in front of.
pub const GATEWAY_ANNOTATION: &str = "pd-router.io/gateway";
/// Bytes of a label's value, and of a Service's name.
const MAX_NAME: usize = 63;
/// Bytes of a Gateway's name in the name of its Service.
const MAX_GATEWAY_NAME: usize = 40;

/// What all the Services have in common.
#[derive(Clone, Debug)]
pub struct Shape {
    pub namespace: Arc<str>,
    /// `LoadBalancer`, `NodePort` or `ClusterIP`.
    pub type_: &'static str,
    /// What each of them is annotated with, where its Gateway does not say otherwise.
    pub annotations: BTreeMap<String, String>,
    /// The labels of our pods.
    pub selector: BTreeMap<String, String>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Create(Box<Service>),
    /// With the version that it was made of, so that nobody's change is lost.
    Replace(Box<Service>),
    /// Of a Gateway that is ours no longer, as far as is known here.
    Delete(Box<Service>),
}

/// What makes `existing` the Services that `wanted` need.
pub fn plan(wanted: &[Front], existing: &[Service], shape: &Shape) -> Vec<Step> {
    let mut known: HashMap<&str, &Service> = HashMap::new();
    let mut steps = Vec::new();
    let mut sorted: Vec<&Service> = existing.iter().collect();
    sorted.sort_by_key(|service| {
        let age = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (age.is_none(), age, service.metadata.name.clone())
    });
    for service in &sorted {
        let Some(uid) = gateway_uid(service) else { continue };
        let needed = wanted.iter().any(|front| front.uid == uid);
        if !needed || known.contains_key(uid) {
            steps.push(Step::Delete(Box::new((*service).clone())));
        } else {
            known.insert(uid, service);
        }
    }
    // Also of those that go: clients may still come by the old way.
    let mut taken = HashMap::new();
    for service in sorted {
        let Some(uid) = gateway_uid(service) else { continue };
        for (port, target) in targets(service) {
            taken.entry(target).or_insert((uid.to_owned(), port));
        }
    }
    for front in wanted {
        match known.get(front.uid.as_str()) {
            _ if front.ports.is_empty() => {}
            Some(service) => {
                let changed = shaped(service, front, shape, &mut taken);
                if changed != **service {
                    steps.push(Step::Replace(Box::new(changed)));
                }
            }
            None => {
                let service = shaped(&Service::default(), front, shape, &mut taken);
                steps.push(Step::Create(Box::new(service)));
            }
        }
    }
    steps
}

/// The Service as it should be; what is not ours to say of it stays.
fn shaped(
    old: &Service,
    front: &Front,
    shape: &Shape,
    taken: &mut HashMap<u16, (String, u16)>,
) -> Service {
    let new = old.metadata.name.is_none();
    let mut service = old.clone();
    let metadata = &mut service.metadata;
    if new {
        metadata.name = Some(name(front));
        metadata.namespace = Some(shape.namespace.to_string());
    }
    put_metadata(metadata, front, shape);
    let known = old.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let port = |&port: &u16| {
        let number = i32::from(port);
        let before = known.iter().find(|known| known.port == number);
        let kept = targets(old).find(|(known, target)| {
            let owner = taken.get(target);
            *known == port && owner.is_none_or(|(uid, of)| (uid, *of) == (&front.uid, port))
        });
        let target = match kept {
            Some((_, target)) => Some(target),
            None => free(&front.uid, port, taken),
        };
        let target = target?;
        taken.insert(target, (front.uid.clone(), port));
        Some(ServicePort {
            name: Some(format!("port-{port}")),
            port: number,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::Int(target.into())),
            ..before.cloned().unwrap_or_default()
        })
    };
    let ports = front.ports.iter().filter_map(port).collect();
    let spec = service.spec.get_or_insert_with(|| ServiceSpec {
        // A stream stays with its node's gateway, and the client's address is kept.
        external_traffic_policy: (shape.type_ != "ClusterIP").then(|| "Local".to_owned()),
        ..ServiceSpec::default()
    });
    spec.ports = Some(ports);
    spec.type_ = Some(shape.type_.to_owned());
    spec.selector = Some(shape.selector.clone());
    if shape.type_ == "ClusterIP" {
        spec.external_traffic_policy = None;
        spec.health_check_node_port = None;
        spec.ports.iter_mut().flatten().for_each(|port| port.node_port = None);
    }
    service
}

fn put_metadata(metadata: &mut ObjectMeta, front: &Front, shape: &Shape) {
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(front.labels.clone());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    labels.insert(GATEWAY_UID_LABEL.to_owned(), front.uid.clone());
    if front.gateway.name.len() <= MAX_NAME {
        labels.insert(GATEWAY_NAME_LABEL.to_owned(), front.gateway.name.to_string());
    }
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.extend(shape.annotations.clone());
    annotations.extend(front.annotations.clone());
    annotations.insert(GATEWAY_ANNOTATION.to_owned(), front.gateway.to_string());
}

/// A name that no other Gateway's Service has, and that a Service may have.
fn name(front: &Front) -> String {
    let readable: String = front.gateway.name.chars().take(MAX_GATEWAY_NAME).collect();
    let unique: String = front.uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("gateway-{}-{unique}", readable.replace('.', "-"))
}

/// A port that no Service leads to. Where one is looked for depends on who asks, so that a port
/// that has just been given back is not soon another's.
fn free(uid: &str, port: u16, taken: &HashMap<u16, (String, u16)>) -> Option<u16> {
    let (first, count) = (*TARGET_PORTS.start(), TARGET_PORTS.len());
    let start = router_core::fnv::fnv1a(uid.bytes().chain(port.to_be_bytes()));
    let start = usize::try_from(start % count as u64).unwrap_or_default();
    let places = (start..count).chain(0..start);
    let mut ports = places.filter_map(|place| first.checked_add(u16::try_from(place).ok()?));
    ports.find(|port| !taken.contains_key(port))
}

#[cfg(test)]
mod tests;
