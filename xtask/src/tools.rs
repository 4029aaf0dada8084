//! Cargo's own tools, installed in the user's cache folder where a machine lacks them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{shell, workspace};

/// A program of the crates registry.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// The cached one, else the machine's.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let own = workspace::cache().ok().map(|cache| cache.join("tools/bin").join(self.name));
        own.filter(|path| path.is_file()).or_else(|| shell::which(self.name))
    }

    /// Builds it into the cache; `complete` names features and what the build needs to see.
    ///
    /// # Errors
    /// The registry cannot be reached, or it does not build.
    pub(crate) fn install(&self, complete: impl FnOnce(&mut Command)) -> Result<PathBuf> {
        let mut install = shell::command(workspace::cargo());
        install
            .args(["install", self.name, "--version", self.version, "--locked", "--quiet"])
            .arg("--root")
            .arg(workspace::cache()?.join("tools"));
        complete(&mut install);
        shell::run(&mut install)?;
        self.find().with_context(|| format!("{} is still missing", self.name))
    }
}
