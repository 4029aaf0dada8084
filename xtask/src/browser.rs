//! The browser in which the page of the admin port is tested: Debian's Chromium.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{shell, tools};

/// Names under which distributions install it.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Finds it, or installs Debian's package.
///
/// # Errors
/// It is missing and cannot be installed here; the message says what to install.
pub(crate) fn chromium() -> Result<PathBuf> {
    let find = || NAMES.into_iter().find_map(shell::which);
    if let Some(path) = find() {
        return Ok(path);
    }
    tools::install_packages(&["chromium", "fonts-dejavu-core"]).context("Chromium is missing")?;
    find().context("Chromium is still missing")
}
