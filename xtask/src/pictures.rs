//! `cargo xtask pictures`: takes the pictures of the admin port's page that the documents show.

use anyhow::{Result, bail};

use crate::{test, workspace};

/// Runs the test that takes them, with the folder of the documents' pictures.
///
/// # Errors
/// The test fails, or it cannot run here.
pub(crate) fn run() -> Result<()> {
    let summary = test::run(&test::Flags::pictures(&workspace::root().join("docs/images")));
    match summary.counts.failed {
        0 => Ok(()),
        _ => bail!("{summary}"),
    }
}
