//! What is in deploy/: kustomize and helm make the same objects of it, and every object is one.

mod alerts;
mod consistency;
mod dashboard;
mod flags;
mod images;
mod rendering;
mod same;
mod strict;
mod values;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests stand in the workspace").into()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
