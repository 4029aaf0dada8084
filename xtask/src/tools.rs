//! Programs that a machine lacks: from the crates registry, built in the user's cache folder, and from
//! Debian's packages.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};

/// A program of the crates registry.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// Finds it, or builds it as [`Tool::install`] does, which takes minutes once.
    ///
    /// # Errors
    /// As [`Tool::install`].
    pub(crate) fn get(&self, complete: impl FnOnce(&mut Command)) -> Result<PathBuf> {
        match self.find() {
            Some(path) => Ok(path),
            None => self.install(complete),
        }
    }

    /// The cached one of this version, else the machine's.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let own = self.folder().ok().map(|folder| folder.join("bin").join(self.name));
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
            .arg(self.folder()?);
        complete(&mut install);
        shell::run(&mut install)?;
        self.find().with_context(|| format!("{} is still missing", self.name))
    }

    /// Each version has its own, so that a raised one is built.
    fn folder(&self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join("tools").join(format!("{}-{}", self.name, self.version)))
    }
}

/// Installs Debian packages.
///
/// # Errors
/// This is not Debian or not root; the message says what to install.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    if shell::which("apt-get").is_none() || !nix::unistd::geteuid().is_root() {
        bail!("install it first (Debian: apt-get install {})", packages.join(" "));
    }
    // Two chores at once wait for each other on apt's own locks.
    let apt = |words: &[&str]| {
        let mut command = shell::command("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(words);
        shell::run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    println!("installing {}", packages.join(" "));
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())
}
