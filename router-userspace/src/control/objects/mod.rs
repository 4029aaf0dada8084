//! The types of the objects that the control plane reads.

pub mod crds;
mod inference;
mod policy;

use std::fmt;

use gateway_api::backendtlspolicies::BackendTlsPolicy;
use gateway_api::gatewayclasses::GatewayClass;
use gateway_api::gateways::Gateway;
use gateway_api::httproutes::HttpRoute;
use gateway_api::referencegrants::ReferenceGrant;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use router_core::fleet::ObjectName;
use serde::{Deserialize, Serialize};

pub use inference::{
    InferencePool, InferenceTrafficPolicy, KvTransfer, MatchLabels, PdProfile, PoolRef, PoolSpec,
    PoolSpecV1, PoolSpecV1Alpha2, PoolTargetPort, SingleProfile, TrafficPolicySpec, TrafficProfile,
};
pub use policy::{
    BackendPolicySpec, BackendTrafficPolicy, HttpTimeout, PolicyTarget, PolicyTimeout,
};

/// An object of a kind that no published crate defines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resource<S> {
    #[serde(default)]
    pub metadata: ObjectMeta,
    pub spec: S,
    /// Written by controllers. Accepted, but never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// The kinds that are read. Problems are sorted in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    GatewayClass,
    Gateway,
    HttpRoute,
    ReferenceGrant,
    /// `inference.networking.x-k8s.io/v1alpha2`
    InferencePoolV1Alpha2,
    /// `inference.networking.k8s.io/v1`
    InferencePoolV1,
    InferenceTrafficPolicy,
    BackendTrafficPolicy,
    BackendTlsPolicy,
    ConfigMap,
    Service,
    EndpointSlice,
    Secret,
    Pod,
}

pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
pub const POOL_GROUP_V1: &str = "inference.networking.k8s.io";
pub const POOL_GROUP_V1ALPHA2: &str = "inference.networking.x-k8s.io";
const TRAFFIC_POLICY_GROUP: &str = "inferenceextension.alibabacloud.com";
const BACKEND_POLICY_GROUP: &str = "gateway.envoyproxy.io";

/// The result of recognising a document's `apiVersion` and `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognized {
    Served(Kind),
    /// A supported kind in an unsupported version.
    OtherVersion(Kind),
    /// Any other kind: accepted and ignored.
    Unhandled,
}

impl Kind {
    /// Recognises a document by its `apiVersion` and `kind`.
    pub fn recognize(api_version: &str, kind: &str) -> Recognized {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let (served, versions): (Kind, &[&str]) = match (group, kind) {
            ("", "Namespace") => (Kind::Namespace, &["v1"]),
            ("", "ConfigMap") => (Kind::ConfigMap, &["v1"]),
            ("", "Pod") => (Kind::Pod, &["v1"]),
            ("", "Secret") => (Kind::Secret, &["v1"]),
            ("", "Service") => (Kind::Service, &["v1"]),
            ("discovery.k8s.io", "EndpointSlice") => (Kind::EndpointSlice, &["v1"]),
            (GATEWAY_GROUP, "GatewayClass") => (Kind::GatewayClass, &["v1", "v1beta1"]),
            (GATEWAY_GROUP, "Gateway") => (Kind::Gateway, &["v1", "v1beta1"]),
            (GATEWAY_GROUP, "HTTPRoute") => (Kind::HttpRoute, &["v1", "v1beta1"]),
            (GATEWAY_GROUP, "BackendTLSPolicy") => (Kind::BackendTlsPolicy, &["v1"]),
            (GATEWAY_GROUP, "ReferenceGrant") => (Kind::ReferenceGrant, &["v1", "v1beta1"]),
            (POOL_GROUP_V1ALPHA2, "InferencePool") => (Kind::InferencePoolV1Alpha2, &["v1alpha2"]),
            (POOL_GROUP_V1, "InferencePool") => (Kind::InferencePoolV1, &["v1"]),
            (TRAFFIC_POLICY_GROUP, "InferenceTrafficPolicy") => {
                (Kind::InferenceTrafficPolicy, &["v1alpha1"])
            }
            (BACKEND_POLICY_GROUP, "BackendTrafficPolicy") => {
                (Kind::BackendTrafficPolicy, &["v1alpha1"])
            }
            _ => return Recognized::Unhandled,
        };
        match versions.contains(&version) {
            true => Recognized::Served(served),
            false => Recognized::OtherVersion(served),
        }
    }

    /// The kind's name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::GatewayClass => "GatewayClass",
            Kind::Gateway => "Gateway",
            Kind::HttpRoute => "HTTPRoute",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::InferencePoolV1Alpha2 | Kind::InferencePoolV1 => "InferencePool",
            Kind::InferenceTrafficPolicy => "InferenceTrafficPolicy",
            Kind::BackendTrafficPolicy => "BackendTrafficPolicy",
            Kind::BackendTlsPolicy => "BackendTLSPolicy",
            Kind::ConfigMap => "ConfigMap",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Secret => "Secret",
            Kind::Pod => "Pod",
        }
    }

    /// Whether objects of this kind are namespaced.
    pub fn namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::GatewayClass)
    }
}

/// The identity of an object: its kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.namespaced() {
            true => write!(f, "{} {}", self.kind.as_str(), self.name),
            false => write!(f, "{} {}", self.kind.as_str(), self.name.name),
        }
    }
}

/// One object of a kind that is read.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    HttpRoute(HttpRoute),
    ReferenceGrant(ReferenceGrant),
    InferencePool(InferencePool),
    InferenceTrafficPolicy(InferenceTrafficPolicy),
    BackendTrafficPolicy(BackendTrafficPolicy),
    BackendTlsPolicy(BackendTlsPolicy),
    /// Stands in for one that is invalid: its validation was not read, and without targets neither were
    /// they.
    UnreadBackendTlsPolicy(BackendTlsPolicy),
    ConfigMap(ConfigMap),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Secret(Secret),
    Pod(Box<Pod>),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::GatewayClass(_) => Kind::GatewayClass,
            Object::Gateway(_) => Kind::Gateway,
            Object::HttpRoute(_) => Kind::HttpRoute,
            Object::ReferenceGrant(_) => Kind::ReferenceGrant,
            Object::InferencePool(pool) => pool.kind(),
            Object::InferenceTrafficPolicy(_) => Kind::InferenceTrafficPolicy,
            Object::BackendTrafficPolicy(_) => Kind::BackendTrafficPolicy,
            Object::BackendTlsPolicy(_) | Object::UnreadBackendTlsPolicy(_) => {
                Kind::BackendTlsPolicy
            }
            Object::ConfigMap(_) => Kind::ConfigMap,
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Secret(_) => Kind::Secret,
            Object::Pod(_) => Kind::Pod,
        }
    }

    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Namespace(object) => &object.metadata,
            Object::GatewayClass(object) => &object.metadata,
            Object::Gateway(object) => &object.metadata,
            Object::HttpRoute(object) => &object.metadata,
            Object::ReferenceGrant(object) => &object.metadata,
            Object::InferencePool(object) => &object.metadata,
            Object::InferenceTrafficPolicy(object) => &object.metadata,
            Object::BackendTrafficPolicy(object) => &object.metadata,
            Object::BackendTlsPolicy(object) | Object::UnreadBackendTlsPolicy(object) => {
                &object.metadata
            }
            Object::ConfigMap(object) => &object.metadata,
            Object::Service(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::Secret(object) => &object.metadata,
            Object::Pod(object) => &object.metadata,
        }
    }

    /// Whether it takes the place of an object that is invalid.
    pub fn is_stand_in(&self) -> bool {
        matches!(self, Object::UnreadBackendTlsPolicy(_))
    }

    /// The key. An object without a namespace is in `default`, as with `kubectl apply`.
    pub fn key(&self) -> Key {
        Key { kind: self.kind(), name: object_name(self.metadata()) }
    }
}

/// The name of an object, in namespace `default` if it has none.
pub fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName {
        namespace: metadata.namespace.as_deref().unwrap_or("default").into(),
        name: metadata.name.as_deref().unwrap_or_default().into(),
    }
}

/// A kind with its group, if it has one: `group/kind`.
pub fn kind_of(group: &str, kind: &str) -> String {
    match group {
        "" => kind.to_owned(),
        group => format!("{group}/{kind}"),
    }
}
