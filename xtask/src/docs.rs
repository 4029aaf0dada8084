//! `cargo xtask docs`: the book of `docs/`, and the API documentation with private items.

use anyhow::Result;

use crate::tools::Tool;
use crate::{shell, tidy, workspace};

const MDBOOK: Tool = Tool { name: "mdbook", version: "0.5.4" };

/// Checks every link of the documents, and builds the book and the API documentation.
///
/// # Errors
/// A link of a document or of a doc comment is broken, or a page is in no chapter list.
pub(crate) fn run() -> Result<()> {
    tidy::documents()?;
    book()?;
    shell::run(
        shell::command(workspace::cargo())
            .args(["doc", "--no-deps", "--quiet", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )
}

/// Builds `target/book/index.html` from `docs/SUMMARY.md`.
fn book() -> Result<()> {
    let mdbook = MDBOOK.get(|command| {
        command.args(["--no-default-features", "--features", "search"]);
    })?;
    shell::run(shell::command(mdbook).args(["build", "docs"]))
}
