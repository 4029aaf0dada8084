//! `cargo xtask crds`: generates the CustomResourceDefinitions from the Rust types.

use anyhow::Result;

use crate::{shell, workspace};

/// Folder of the definitions. A unit test compares it with the Rust types.
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
