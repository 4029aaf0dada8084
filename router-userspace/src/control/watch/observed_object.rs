//! [`ObservedObject`]: an object from the API server, without the fields that are never read.

use router_core::fleet::Problem;
use serde_json::Value;

use super::super::document::{self, Content};
use super::super::fields::FieldProblem;
use super::super::index::Source;
use super::super::objects::{Key, Kind};

/// Annotations that are kept. Others are dropped, so that a change of them builds no fleet.
const ANNOTATIONS: [&str; 1] = [super::super::index::BOOTSTRAP_PORT_ANNOTATION];

/// One object from a list or a watch.
#[derive(Debug)]
pub struct ObservedObject {
    pub(super) key: Key,
    /// The resource version, which grows with every change in a cluster.
    pub(super) version: u64,
    pub(in crate::control) content: Content,
    pub(in crate::control) problems: Vec<Problem>,
}

impl ObservedObject {
    /// Parses an object of `kind`. Returns `None` if it has no name.
    pub fn read(kind: Kind, mut value: Value) -> Option<ObservedObject> {
        let key = document::key(kind, &value)?;
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let version = version.and_then(|text| text.parse().ok()).unwrap_or_default();
        trim(kind, &mut value);
        let (content, mut field_problems) = document::object(kind, value);
        if !matches!(content, Content::Broken(_)) && built_in(kind) {
            // Built-in kinds of a newer cluster have fields that are unknown here and not needed.
            field_problems.clear();
        }
        let problem = |field_problem: FieldProblem| Problem {
            source: Source::Cluster.name(),
            document: None,
            object: Some(key.to_string().into()),
            field: field_problem.field.map(Into::into),
            code: field_problem.code,
            reason: field_problem.reason.into(),
        };
        let problems = field_problems.into_iter().map(problem).collect();
        Some(ObservedObject { key, version, content, problems })
    }
}

fn built_in(kind: Kind) -> bool {
    let more = matches!(kind, Kind::Namespace | Kind::Pod | Kind::Secret | Kind::ConfigMap);
    more || matches!(kind, Kind::Service | Kind::EndpointSlice)
}

/// Drops fields that are never read and change often, so that such a change builds no fleet.
fn trim(kind: Kind, value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // Services that pd-router creates are compared with all their annotations.
        let labels = metadata.get("labels");
        let created =
            labels.is_some_and(|all| all.get(super::super::index::GATEWAY_UID_LABEL).is_some());
        for field in ["managedFields", "resourceVersion", "selfLink", "finalizers"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|name, _| created || ANNOTATIONS.contains(&name.as_str()));
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    let Some(object) = value.as_object_mut() else { return };
    match kind {
        Kind::Pod => trim_pod(object),
        Kind::Service => {
            let status = object.remove("status").unwrap_or_default();
            if let Some(ingress) = status.pointer("/loadBalancer/ingress") {
                let status = serde_json::json!({"loadBalancer": {"ingress": ingress}});
                object.insert("status".to_owned(), status);
            }
        }
        Kind::Secret => {
            if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
                data.retain(|entry, _| super::super::index::TLS_ENTRIES.contains(&entry.as_str()));
            }
        }
        Kind::ConfigMap => {
            object.remove("binaryData");
            if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
                data.retain(|entry, _| entry == super::super::index::AUTHORITIES);
            }
        }
        _ => _ = object.remove("status"),
    }
}

fn trim_pod(object: &mut serde_json::Map<String, Value>) {
    let text = |value: &Value, at: &str| value.pointer(at).cloned().unwrap_or(Value::Null);
    let containers = object.get("spec").map(|spec| text(spec, "/containers"));
    let containers = containers.as_ref().and_then(Value::as_array).into_iter().flatten();
    let containers: Vec<Value> = containers
        .map(|one| serde_json::json!({"name": text(one, "/name"), "ports": text(one, "/ports")}))
        .collect();
    let status = object.get("status").cloned().unwrap_or_default();
    let conditions = status.get("conditions").and_then(Value::as_array).into_iter().flatten();
    let ready: Vec<Value> = conditions
        .filter(|condition| condition.get("type").is_some_and(|kind| kind == "Ready"))
        .map(|ready| serde_json::json!({"type": "Ready", "status": text(ready, "/status")}))
        .collect();
    let statuses = status.get("containerStatuses").and_then(Value::as_array).into_iter().flatten();
    let statuses: Vec<Value> = statuses.map(trimmed_container).collect();
    let status = serde_json::json!({
        "phase": text(&status, "/phase"),
        "podIP": text(&status, "/podIP"),
        "conditions": ready,
        "containerStatuses": statuses,
    });
    let mut spec = serde_json::json!({"containers": containers});
    for field in ["nodeName", "hostNetwork"] {
        if let Some(value) = object.get("spec").and_then(|spec| spec.get(field)) {
            spec[field] = value.clone();
        }
    }
    object.insert("spec".to_owned(), spec);
    object.insert("status".to_owned(), status);
}

/// The status of a container: whether it runs, and how often it has started again.
fn trimmed_container(status: &Value) -> Value {
    let mut trimmed = serde_json::Map::new();
    for field in ["name", "restartCount", "started"] {
        if let Some(value) = status.get(field) {
            trimmed.insert(field.to_owned(), value.clone());
        }
    }
    let state = status.get("state").and_then(Value::as_object).into_iter().flatten();
    let state = state.map(|(name, _)| (name.clone(), serde_json::json!({})));
    trimmed.insert("state".to_owned(), Value::Object(state.collect()));
    Value::Object(trimmed)
}
