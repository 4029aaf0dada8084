//! One object as a watch told of it, without what is never read.

use router_core::fleet::Problem;
use serde_json::Value;

use super::super::document::{self, Content};
use super::super::fields::Complaint;
use super::super::index::Source;
use super::super::objects::{Key, Kind};

/// Annotations that are read; the others are dropped, and a change of them is no news.
const ANNOTATIONS: [&str; 1] = [super::super::index::BOOTSTRAP_PORT_ANNOTATION];

/// One object as the API server had it.
#[derive(Debug)]
pub struct Seen {
    pub(super) key: Key,
    /// Grows with every change in a cluster.
    pub(super) version: u64,
    pub(super) content: Content,
    pub(super) problems: Vec<Problem>,
}

impl Seen {
    /// Reads an object of `kind`; `None` where it has no name.
    pub fn read(kind: Kind, mut value: Value) -> Option<Seen> {
        let key = document::key(kind, &value)?;
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let version = version.and_then(|text| text.parse().ok()).unwrap_or_default();
        trim(kind, &mut value);
        let (content, mut complaints) = document::object(kind, value);
        if !matches!(content, Content::Broken) && built_in(kind) {
            // A newer cluster's built-in kinds have fields that we do not know, and need not.
            complaints.clear();
        }
        let problem = |complaint: Complaint| Problem {
            source: Source::Cluster.name(),
            document: None,
            object: Some(key.to_string().into()),
            field: complaint.field.map(Into::into),
            code: complaint.code,
            reason: complaint.reason.into(),
        };
        let problems = complaints.into_iter().map(problem).collect();
        Some(Seen { key, version, content, problems })
    }
}

fn built_in(kind: Kind) -> bool {
    let more = matches!(kind, Kind::Namespace | Kind::Pod | Kind::Secret);
    more || matches!(kind, Kind::Service | Kind::EndpointSlice)
}

/// Leaves out what is never read and changes often: a change of it alone is then no news.
fn trim(kind: Kind, value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // What we make is compared whole.
        let labels = metadata.get("labels");
        let made =
            labels.is_some_and(|all| all.get(super::super::index::GATEWAY_UID_LABEL).is_some());
        for field in ["managedFields", "resourceVersion", "selfLink", "finalizers"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|name, _| made || ANNOTATIONS.contains(&name.as_str()));
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
    let status = serde_json::json!({
        "phase": text(&status, "/phase"),
        "podIP": text(&status, "/podIP"),
        "conditions": ready,
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
