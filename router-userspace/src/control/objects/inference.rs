//! InferencePool in both of its groups, and the InferenceTrafficPolicy that configures it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kind, Resource};

/// A pool of either API version.
#[derive(Clone, Debug, PartialEq)]
pub struct InferencePool {
    pub metadata: ObjectMeta,
    pub spec: PoolSpec,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PoolSpec {
    V1Alpha2(PoolSpecV1Alpha2),
    V1(PoolSpecV1),
    /// Engines of the command line: each listens on a port of its own, its first container port.
    OfEngines {
        selector: BTreeMap<String, String>,
    },
}

/// `inference.networking.x-k8s.io/v1alpha2`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpecV1Alpha2 {
    /// Labels that a pod of the namespace must have, all of them, to be of the pool.
    pub selector: BTreeMap<String, String>,
    /// The port that engines serve HTTP on.
    pub target_port_number: NonZeroU16,
    /// Names a picker that other gateways ask. pd-router picks itself.
    #[schemars(schema_with = "super::crds::open")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension_ref: Option<serde_json::Value>,
}

/// `inference.networking.k8s.io/v1`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpecV1 {
    pub selector: MatchLabels,
    pub target_ports: Vec<PoolTargetPort>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Names a picker that other gateways ask. pd-router picks itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_picker_ref: Option<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchLabels {
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolTargetPort {
    pub number: NonZeroU16,
}

impl InferencePool {
    pub fn kind(&self) -> Kind {
        match self.spec {
            PoolSpec::V1Alpha2(_) => Kind::InferencePoolV1Alpha2,
            PoolSpec::V1(_) | PoolSpec::OfEngines { .. } => Kind::InferencePoolV1,
        }
    }

    /// Every one of these labels must be on a pod.
    pub fn selector(&self) -> &BTreeMap<String, String> {
        match &self.spec {
            PoolSpec::V1Alpha2(spec) => &spec.selector,
            PoolSpec::V1(spec) => &spec.selector.match_labels,
            PoolSpec::OfEngines { selector } => selector,
        }
    }

    /// The ports of a pod that the pool selects; each is one worker.
    pub fn ports(&self, pod: &Pod) -> Vec<u16> {
        match &self.spec {
            PoolSpec::V1Alpha2(spec) => vec![spec.target_port_number.get()],
            PoolSpec::V1(spec) => {
                let mut seen = BTreeSet::new();
                let all = spec.target_ports.iter().map(|port| port.number.get());
                all.filter(|port| seen.insert(*port)).collect()
            }
            PoolSpec::OfEngines { .. } => {
                let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
                let mut ports =
                    containers.filter_map(|container| container.ports.as_ref()).flatten();
                let first = ports.next().and_then(|port| u16::try_from(port.container_port).ok());
                first.into_iter().collect()
            }
        }
    }

    pub fn app_protocol(&self) -> Option<&str> {
        match &self.spec {
            PoolSpec::V1Alpha2(_) | PoolSpec::OfEngines { .. } => None,
            PoolSpec::V1(spec) => spec.app_protocol.as_deref(),
        }
    }
}

/// How an InferencePool serves.
pub type InferenceTrafficPolicy = Resource<TrafficPolicySpec>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The pool of this namespace that the policy is for.
    pub pool_ref: PoolRef,
    /// The engine: `sglang`, which is also the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_server_runtime: Option<String>,
    /// How the pool serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<TrafficProfile>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolRef {
    /// Either of the pool's groups; without one, both are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `InferencePool`, which is also the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The pool's name.
    pub name: String,
}

/// `pd`, `single` or neither, which is `single`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TrafficProfile {
    /// Prefill and decode apart: a request takes a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pd: Option<PdProfile>,
    /// Every worker serves alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single: Option<SingleProfile>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PdProfile {
    /// The label whose value, `prefill` or `decode`, is a pod's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pd_role_label_name: Option<String>,
    /// How prefills hand KV caches over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_transfer: Option<KvTransfer>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct KvTransfer {
    /// The engines' `--disaggregation-bootstrap-port`. Default: what each engine reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_port: Option<NonZeroU16>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct SingleProfile {}
