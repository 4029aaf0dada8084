//! The CustomResourceDefinitions that pd-router ships, generated from the types that it reads.
//!
//! InferencePool `v1alpha2` differs from upstream in that `extensionRef` is optional, because
//! pd-router picks endpoints itself. InferenceTrafficPolicy accepts unknown fields below `profile`,
//! which are reported as problems.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{POOL_GROUP_V1ALPHA2, PoolSpecV1Alpha2, TRAFFIC_POLICY_GROUP, TrafficPolicySpec};

/// The names of a kind in its definition.
struct CrdNames {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
}

/// Every definition, as YAML documents by file name.
///
/// # Errors
/// A type has a schema that a definition cannot hold.
pub fn files() -> Result<Vec<(String, String)>, String> {
    let all = [inference_pool()?, inference_traffic_policy()?];
    let file = |definition: &CustomResourceDefinition| {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let value = serde_json::to_value(definition).map_err(|error| error.to_string())?;
        let text = serde_saphyr::to_string(&value).map_err(|error| error.to_string())?;
        Ok((format!("{name}.yaml"), text))
    };
    all.iter().map(file).collect()
}

fn inference_pool() -> Result<CustomResourceDefinition, String> {
    let names = CrdNames {
        group: POOL_GROUP_V1ALPHA2,
        version: "v1alpha2",
        kind: "InferencePool",
        plural: "inferencepools",
        short: "xinfpool",
    };
    let accepted = r#".status.parent[*].conditions[?(@.type=="Accepted")].status"#;
    let columns = [("Port", "integer", ".spec.targetPortNumber"), ("Accepted", "string", accepted)];
    definition(&names, &columns, spec::<PoolSpecV1Alpha2>())
}

fn inference_traffic_policy() -> Result<CustomResourceDefinition, String> {
    let names = CrdNames {
        group: TRAFFIC_POLICY_GROUP,
        version: "v1alpha1",
        kind: "InferenceTrafficPolicy",
        plural: "inferencetrafficpolicies",
        short: "itp",
    };
    let columns = [
        ("Pool", "string", ".spec.poolRef.name"),
        ("Runtime", "string", ".spec.modelServerRuntime"),
        ("Bootstrap", "integer", ".spec.profile.pd.kvTransfer.bootstrapPort"),
        ("Accepted", "string", r#".status.conditions[?(@.type=="Accepted")].status"#),
        ("Ready", "string", r#".status.conditions[?(@.type=="Ready")].status"#),
        ("Reason", "string", r#".status.conditions[?(@.type=="Ready")].reason"#),
    ];
    definition(&names, &columns, spec::<TrafficPolicySpec>())
}

/// The schema of a spec, without references and null types, which definitions do not support.
fn spec<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

/// Removes what the API server refuses or warns about: titles, integer widths and null defaults.
fn structural(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("type").is_some_and(Value::is_string) {
                fields.remove("title");
                if fields.get("format").is_some_and(|format| format == "uint16") {
                    fields.remove("format");
                }
                if fields.get("default").is_some_and(Value::is_null) {
                    fields.remove("default");
                }
            }
            fields.values_mut().for_each(structural);
        }
        Value::Array(items) => items.iter_mut().for_each(structural),
        _ => {}
    }
}

/// The schema of an object with arbitrary fields.
pub(super) fn open(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn definition(
    names: &CrdNames,
    columns: &[(&str, &str, &str)],
    spec: Value,
) -> Result<CustomResourceDefinition, String> {
    let status = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": spec, "status": status},
    });
    let age = ("Age", "date", ".metadata.creationTimestamp");
    let column = |(name, type_, path): &(&str, &str, &str)| CustomResourceColumnDefinition {
        name: (*name).to_owned(),
        type_: (*type_).to_owned(),
        json_path: (*path).to_owned(),
        ..CustomResourceColumnDefinition::default()
    };
    let version = CustomResourceDefinitionVersion {
        name: names.version.to_owned(),
        served: true,
        storage: true,
        schema: Some(CustomResourceValidation {
            open_api_v3_schema: Some(
                serde_json::from_value(schema).map_err(|error| error.to_string())?,
            ),
        }),
        subresources: Some(CustomResourceSubresources {
            status: Some(CustomResourceSubresourceStatus(json!({}))),
            ..CustomResourceSubresources::default()
        }),
        additional_printer_columns: Some(columns.iter().chain([&age]).map(column).collect()),
        ..CustomResourceDefinitionVersion::default()
    };
    Ok(CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", names.plural, names.group)),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: names.group.to_owned(),
            names: CustomResourceDefinitionNames {
                kind: names.kind.to_owned(),
                plural: names.plural.to_owned(),
                singular: Some(names.kind.to_lowercase()),
                list_kind: Some(format!("{}List", names.kind)),
                short_names: Some(vec![names.short.to_owned()]),
                ..CustomResourceDefinitionNames::default()
            },
            scope: "Namespaced".to_owned(),
            versions: vec![version],
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_shipped_definitions_match_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        for (name, text) in files().unwrap() {
            let shipped = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert_eq!(shipped, text, "{name} is stale: run `cargo xtask crds`");
        }
    }

    #[test]
    fn fields_that_the_documentation_omits_are_optional() {
        let pool = spec::<PoolSpecV1Alpha2>();
        assert_eq!(pool["required"], json!(["selector", "targetPortNumber"]));
        assert_eq!(pool["properties"]["targetPortNumber"]["maximum"], 65_535);
        let policy = spec::<TrafficPolicySpec>();
        assert_eq!(policy["required"], json!(["poolRef"]));
        let profile = &policy["properties"]["profile"];
        assert_eq!(profile["x-kubernetes-preserve-unknown-fields"], true);
    }
}
