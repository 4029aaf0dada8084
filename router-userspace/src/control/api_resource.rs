//! Under which group, version and plural the API server serves a kind.

use kube::api::ApiResource;

use super::objects::Kind;

/// The API resource of a kind, in the oldest version that supported clusters serve.
pub(super) fn api_resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::Namespace => ("", "v1", "namespaces"),
        Kind::Pod => ("", "v1", "pods"),
        Kind::Service => ("", "v1", "services"),
        Kind::Secret => ("", "v1", "secrets"),
        Kind::ConfigMap => ("", "v1", "configmaps"),
        Kind::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices"),
        Kind::GatewayClass => ("gateway.networking.k8s.io", "v1", "gatewayclasses"),
        Kind::Gateway => ("gateway.networking.k8s.io", "v1", "gateways"),
        Kind::HttpRoute => ("gateway.networking.k8s.io", "v1", "httproutes"),
        // Gateway API serves it in this version since 1.4.
        Kind::BackendTlsPolicy => ("gateway.networking.k8s.io", "v1", "backendtlspolicies"),
        // Gateway API serves v1 only since 1.5.
        Kind::ReferenceGrant => ("gateway.networking.k8s.io", "v1beta1", "referencegrants"),
        Kind::InferencePoolV1Alpha2 => {
            ("inference.networking.x-k8s.io", "v1alpha2", "inferencepools")
        }
        Kind::InferencePoolV1 => ("inference.networking.k8s.io", "v1", "inferencepools"),
        Kind::InferenceTrafficPolicy => {
            ("inferenceextension.alibabacloud.com", "v1alpha1", "inferencetrafficpolicies")
        }
        Kind::BackendTrafficPolicy => {
            ("gateway.envoyproxy.io", "v1alpha1", "backendtrafficpolicies")
        }
    };
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.as_str().to_owned(),
        plural: plural.to_owned(),
    }
}
