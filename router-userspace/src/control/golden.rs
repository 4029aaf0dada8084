//! Golden tests: files of manifests in `golden/`, and a snapshot of the fleet built from each.
//! `UPDATE_GOLDEN=1` rewrites the snapshots.

use std::path::Path;
use std::sync::Arc;

use router_core::fleet::Fleet;

use super::document::{self, Content};
use super::index::{Index, Source};
use super::objects::Object;

/// The index of a text, as the directory source fills it.
pub(super) fn index(file: &str, text: &str) -> Index {
    let mut index = Index::default();
    let name: Arc<str> = file.into();
    let mut problems = Vec::new();
    for document in document::read(&name, text) {
        let source = Source::File { name: Arc::clone(&name), document: document.position };
        if let Some(object) = document.content.into_object() {
            index.apply(source, object);
        }
        problems.extend(document.problems);
    }
    index.report(&name, problems);
    index
}

pub(super) fn fleet(text: &str) -> Fleet {
    index("case.yaml", text).build(&Fleet::default())
}

/// The first object of a text.
pub(super) fn object(text: &str) -> Object {
    let documents = document::read(&"case.yaml".into(), text);
    let mut objects = documents.into_iter().filter_map(|document| match document.content {
        Content::Object(object) => Some(*object),
        _ => None,
    });
    objects.next().unwrap()
}

/// The fleet as text: as in `/fleet`, with problems as in the log.
fn snapshot(fleet: &Fleet) -> String {
    let mut value = serde_json::to_value(fleet).unwrap();
    let problems: Vec<String> = fleet.problems.iter().map(ToString::to_string).collect();
    value["problems"] = problems.into();
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

#[test]
fn every_case_builds_the_fleet_of_its_snapshot() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/golden");
    let mut cases = 0;
    let mut different = Vec::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        cases += 1;
        let made = snapshot(&fleet(&std::fs::read_to_string(&path).unwrap()));
        let expected = path.with_extension("fleet.snap");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&expected, made).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != made {
            different.push(format!("{}\n{made}", path.display()));
        }
    }
    assert!(cases > 0);
    assert!(different.is_empty(), "not as in the snapshot:\n{}", different.join("\n"));
}
