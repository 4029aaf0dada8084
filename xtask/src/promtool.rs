//! Prometheus' promtool, which the alert rules and the metrics are tested with: the one that is installed, or
//! that of Debian's package, which is unpacked and not installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};

/// The package, and the stamp of the folder that it is kept in.
const PACKAGE: &str = "prometheus";

/// Where promtool is, fetched on first use.
///
/// # Errors
/// There is none, and none can be fetched here.
pub(crate) fn program() -> Result<PathBuf> {
    if let Some(path) = shell::which("promtool") {
        return Ok(path);
    }
    if shell::which("apt-get").is_none() {
        bail!("promtool is missing, and this is not Debian: install Prometheus");
    }
    let folder = workspace::kept("promtool", PACKAGE, fetch)?;
    Ok(folder.join("usr/bin/promtool"))
}

fn fetch(folder: &Path) -> Result<()> {
    println!("fetching promtool into {}", folder.display());
    std::fs::create_dir_all(folder).context("making the folder")?;
    shell::run(shell::command("apt-get").args(["update", "-qq"]))?;
    let mut download = shell::command("apt-get");
    shell::run(download.args(["download", "-qq", PACKAGE]).current_dir(folder))?;
    let entries = std::fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    let mut packages = entries.filter(|path| path.extension().is_some_and(|end| end == "deb"));
    let package = packages.next().context("no package was fetched")?;
    shell::run(shell::command("dpkg").arg("-x").arg(&package).arg(folder))?;
    std::fs::remove_file(&package).context("removing the package")?;
    // Five times as large as all that is needed.
    std::fs::remove_file(folder.join("usr/bin/prometheus")).context("removing the server")
}
