//! BackendTrafficPolicy (`gateway.envoyproxy.io/v1alpha1`). Only its request timeout is read.

use serde::{Deserialize, Serialize};

use super::Resource;

/// Timeouts for the routes of a Gateway or of one HTTPRoute.
pub type BackendTrafficPolicy = Resource<BackendPolicySpec>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendPolicySpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTarget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<PolicyTarget>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<PolicyTimeout>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    pub group: String,
    pub kind: String,
    pub name: String,
    /// A listener of the Gateway or a named rule of the HTTPRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyTimeout {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTimeout>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpTimeout {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<String>,
}
