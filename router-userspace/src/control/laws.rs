//! The law of files of manifests.

use std::sync::Arc;

use router_core::fleet::Fleet;
use serde_json::{Value, json};

use super::document::{self, Content, Document};
use super::index::{Index, Source};
use super::objects::{InferencePool, Object, PoolSpec};

/// The text of a file of manifests. A problem names its document and, if it can be read, its object;
/// documents do not affect each other; the same objects in any order make the same fleet; an object that
/// is written again as it was read is the same object.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let documents = read(text);
    documents.iter().for_each(problems_name_the_document);
    let same: Vec<String> = read(text).iter().map(shown).collect();
    assert_eq!(documents.iter().map(shown).collect::<Vec<_>>(), same);
    documents_are_apart(text, &documents);
    let fleet = seen(&index(text, false).build(&Fleet::default()));
    assert_eq!(seen(&index(text, true).build(&Fleet::default())), fleet, "in another order");
    for document in &documents {
        if let Content::Object(object) = &document.content {
            is_the_same_when_written(object);
        }
    }
    as_another_parser(text, &documents);
}

/// The fleet that a file makes.
pub(crate) fn fleet(text: &str) -> Fleet {
    index(text, false).build(&Fleet::default())
}

fn read(text: &str) -> Vec<Document> {
    document::read(&"file.yaml".into(), text)
}

fn index(text: &str, reversed: bool) -> Index {
    let file: Arc<str> = "file.yaml".into();
    let (mut index, mut problems) = (Index::default(), Vec::new());
    let mut documents = read(text);
    if reversed {
        documents.reverse();
    }
    for document in documents {
        let source = Source::File { name: Arc::clone(&file), document: document.position };
        problems.push(document.problems);
        if let Some(object) = document.content.into_object() {
            index.apply(source, object);
        }
    }
    if reversed {
        problems.reverse();
    }
    index.report(&file, problems.into_iter().flatten().collect());
    index
}

/// What a fleet shows of itself, with its problems as in the log.
fn seen(fleet: &Fleet) -> (Value, Vec<String>) {
    let value = serde_json::to_value(fleet).expect("a fleet can be shown");
    (value, fleet.problems.iter().map(ToString::to_string).collect())
}

/// What makes a document differ from another, but not its position.
fn shown(document: &Document) -> String {
    let problems: Vec<_> = document.problems.iter().map(|problem| problem.code).collect();
    match &document.content {
        Content::Object(object) => format!("{object:?} {problems:?}"),
        content => format!("{:?} {content:?} {problems:?}", document.key),
    }
}

fn problems_name_the_document(document: &Document) {
    let is_broken = matches!(document.content, Content::Broken(_));
    assert!(!is_broken || !document.problems.is_empty(), "{document:?}");
    for problem in &document.problems {
        assert!(problem.document.is_some(), "{problem:?}");
        let object = document.key.as_ref().map(ToString::to_string);
        assert_eq!(problem.object.as_deref(), object.as_deref());
        assert!(!problem.reason.is_empty() && problem.reason.chars().count() < 1000);
    }
    if let Content::Object(object) = &document.content {
        assert_eq!(document.key.as_ref(), Some(&object.key()));
    }
}

/// A file and itself behind a separator is the file twice.
fn documents_are_apart(text: &str, documents: &[Document]) {
    let twice = read(&format!("{text}\n---\n{text}"));
    let once: Vec<String> = documents.iter().map(shown).collect();
    let (first, second) = twice.split_at(once.len().min(twice.len()));
    assert!(first.iter().map(shown).eq(once.iter().cloned()), "{twice:?}");
    assert!(second.iter().map(shown).eq(once), "{twice:?}");
}

fn is_the_same_when_written(object: &Object) {
    let Ok(written) = written(object) else { return };
    let (content, problems) = document::object(object.kind(), written.clone());
    let Content::Object(again) = content else {
        panic!("{object:?} is not read from {written}: {problems:?}")
    };
    assert_eq!(self::written(&again).ok(), Some(written));
    let unknown = problems.iter().find(|problem| problem.code == "UnknownField");
    assert!(unknown.is_none(), "{unknown:?}");
}

fn written(object: &Object) -> serde_json::Result<Value> {
    match object {
        Object::Namespace(object) => serde_json::to_value(object),
        Object::GatewayClass(object) => serde_json::to_value(object),
        Object::Gateway(object) => serde_json::to_value(object),
        Object::HttpRoute(object) => serde_json::to_value(object),
        Object::ReferenceGrant(object) => serde_json::to_value(object),
        Object::InferencePool(InferencePool { metadata, spec }) => Ok(match spec {
            PoolSpec::V1Alpha2(spec) => json!({"metadata": metadata, "spec": spec}),
            PoolSpec::V1(spec) => json!({"metadata": metadata, "spec": spec}),
            PoolSpec::OfEngines { .. } => panic!("flags make it, no document"),
        }),
        Object::InferenceTrafficPolicy(object) => serde_json::to_value(object),
        Object::BackendTrafficPolicy(object) => serde_json::to_value(object),
        Object::BackendTlsPolicy(object) | Object::UnreadBackendTlsPolicy(object) => {
            serde_json::to_value(object)
        }
        Object::ConfigMap(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::EndpointSlice(object) => serde_json::to_value(object),
        Object::Secret(object) => serde_json::to_value(object),
        Object::Pod(object) => serde_json::to_value(object),
    }
}

/// A file that is JSON is one document, and has the object that a parser of JSON finds.
fn as_another_parser(text: &str, documents: &[Document]) {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    let [Document { key: Some(key), content: Content::Object(object), .. }] = documents else {
        return;
    };
    if value.get("items").is_some() {
        return;
    }
    let (content, problems) = document::object(key.kind, value);
    let Content::Object(other) = content else { panic!("{problems:?}") };
    assert_eq!(other, *object);
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_near_manifests_keeps_the_law() {
        crate::laws::inputs::try_law("manifest", super::manifest, 1_000);
    }
}
