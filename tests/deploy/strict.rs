//! Every object of every rendering, decoded into the type of its kind: no field is unknown to it.

use gateway_api::gatewayclasses::GatewayClass;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::rendering::{WAYS, helm, kustomize};

/// What the Prometheus operator knows of a PodMonitor, as far as ours go. No crate has its types.
mod monitor {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct PodMonitor {
        api_version: String,
        kind: String,
        metadata: BTreeMap<String, String>,
        spec: Spec,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Spec {
        selector: Selector,
        #[serde(skip_serializing_if = "Option::is_none")]
        attach_metadata: Option<AttachMetadata>,
        pod_metrics_endpoints: Vec<Endpoint>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Selector {
        match_labels: BTreeMap<String, String>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct AttachMetadata {
        node: bool,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Endpoint {
        port: String,
        path: String,
        honor_labels: bool,
        interval: String,
        authorization: Authorization,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Authorization {
        r#type: String,
        credentials: Credentials,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Credentials {
        name: String,
        key: String,
    }
}

/// What the Prometheus operator knows of a PrometheusRule, as far as ours go.
mod rules {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct PrometheusRule {
        api_version: String,
        kind: String,
        metadata: BTreeMap<String, String>,
        spec: Spec,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Spec {
        groups: Vec<Group>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Group {
        name: String,
        rules: Vec<Rule>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        alert: String,
        expr: String,
        #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
        lasts: Option<String>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    }
}

/// Decodes and encodes again: what the type does not know is lost on the way.
fn decode<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let decoded: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let kept = serde_json::to_value(decoded).map_err(|error| error.to_string())?;
    lost("", object, &kept)
}

fn lost(path: &str, given: &Value, kept: &Value) -> Result<(), String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            given.iter().try_for_each(|(key, value)| match kept.get(key) {
                Some(kept) => lost(&format!("{path}.{key}"), value, kept),
                None => Err(format!("{path}.{key} is no field of it")),
            })
        }
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => {
            let mut all = given.iter().zip(kept).enumerate();
            all.try_for_each(|(index, (given, kept))| {
                lost(&format!("{path}[{index}]"), given, kept)
            })
        }
        // 1 and 1.0 are the same to every reader of YAML and JSON.
        (Value::Number(given), Value::Number(kept)) if given.as_f64() == kept.as_f64() => Ok(()),
        _ if given == kept => Ok(()),
        _ => Err(format!("{path}: {given} is read as {kept}")),
    }
}

fn decode_as_its_kind(object: &Value) -> Result<(), String> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => decode::<Namespace>(object),
        ("v1", "ServiceAccount") => decode::<ServiceAccount>(object),
        ("v1", "Service") => decode::<Service>(object),
        ("apps/v1", "Deployment") => decode::<Deployment>(object),
        ("apps/v1", "DaemonSet") => decode::<DaemonSet>(object),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => decode::<HorizontalPodAutoscaler>(object),
        ("policy/v1", "PodDisruptionBudget") => decode::<PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => decode::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => decode::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            decode::<ClusterRoleBinding>(object)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => decode::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => decode::<RoleBinding>(object),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            decode::<CustomResourceDefinition>(object)
        }
        ("gateway.networking.k8s.io/v1", "GatewayClass") => decode::<GatewayClass>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => decode::<rules::PrometheusRule>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => decode::<monitor::PodMonitor>(object),
        (version, kind) => Err(format!("{version} {kind} is a kind that is not known here")),
    }
}

#[test]
fn every_rendered_object_decodes_strictly() {
    for way in &WAYS {
        for (tool, objects) in
            [("kustomize", kustomize(way.folder)), ("helm", helm(way.flags).expect(way.folder))]
        {
            for (key, object) in &objects {
                let decoded = decode_as_its_kind(object);
                assert_eq!(decoded, Ok(()), "{key} of {} by {tool}", way.folder);
            }
        }
    }
}

#[test]
fn an_unknown_field_and_a_wrong_type_are_refused() {
    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "spec": spec});
    assert_eq!(decode_as_its_kind(&service(json!({"type": "NodePort"}))), Ok(()));
    let unknown = decode_as_its_kind(&service(json!({"ports": [{"prot": 1, "port": 1}]})));
    assert_eq!(unknown, Err(".spec.ports[0].prot is no field of it".to_owned()));
    assert!(decode_as_its_kind(&service(json!({"ports": [{"port": "1"}]}))).is_err());
    assert!(decode_as_its_kind(&json!({"apiVersion": "v2", "kind": "Service"})).is_err());
}
