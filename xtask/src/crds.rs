//! `cargo xtask crds`: the CustomResourceDefinitions, written anew from the Rust types.

use anyhow::Result;

use crate::{shell, workspace};

/// Where they are shipped from; a unit test compares.
const FOLDER: &str = "deploy/crds";

/// Runs `pd-router crds`, which knows the types.
///
/// # Errors
/// The build fails, or a file cannot be written.
pub(crate) fn run() -> Result<()> {
    std::fs::create_dir_all(workspace::root().join(FOLDER))?;
    let mut command = shell::command(workspace::cargo());
    command.args(["run", "--quiet", "--bin", "pd-router", "--", "crds", "--write", FOLDER]);
    shell::run(&mut command)
}
