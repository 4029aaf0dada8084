//! `cargo xtask docs`: the API documentation, private items too, with broken links as errors.

use anyhow::Result;

use crate::{shell, workspace};

/// Builds the documentation of the workspace's own crates.
///
/// # Errors
/// rustdoc warns.
pub(crate) fn run() -> Result<()> {
    shell::run(
        shell::command(workspace::cargo())
            .args(["doc", "--no-deps", "--quiet", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )
}
