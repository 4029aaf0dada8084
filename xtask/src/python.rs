//! Virtual environments in the user's cache folder: real clients and peers, from a file of
//! requirements each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{shell, tools, workspace};

/// The python of the environment with the official OpenAI client.
///
/// # Errors
/// As [`environment`].
pub(crate) fn venv() -> Result<PathBuf> {
    environment("venv", "tests/clients/requirements.txt")
}

/// The python of the environment with sglang-router, the peer in the benchmark.
///
/// # Errors
/// As [`environment`].
pub(crate) fn sglang_router() -> Result<PathBuf> {
    environment("sglang-router", "tests/bench/requirements.txt")
}

/// The python of the environment `name`, made on first use and whenever its requirements change.
///
/// # Errors
/// No python, no venv module, or the registry cannot be reached.
fn environment(name: &str, requirements: &str) -> Result<PathBuf> {
    let wanted = std::fs::read_to_string(workspace::root().join(requirements))
        .with_context(|| format!("reading {requirements}"))?;
    let folder = workspace::kept(name, &wanted, |folder| {
        println!("making a virtual environment in {}", folder.display());
        make(folder)?;
        pip(&folder.join("bin/python"), &["--requirement", requirements])
    })?;
    Ok(folder.join("bin/python"))
}

/// Installs into the environment of that python.
///
/// # Errors
/// pip fails.
pub(crate) fn pip(python: &Path, words: &[&str]) -> Result<()> {
    let mut pip = shell::command(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    shell::run(pip.args(words))
}

/// Makes an empty environment.
///
/// # Errors
/// There is no python, or it has no venv module, and neither can be installed here.
pub(crate) fn make(folder: &Path) -> Result<()> {
    if shell::which("python3").is_none() {
        tools::install_packages(&["python3", "python3-venv"]).context("python3 is missing")?;
    }
    let make =
        || shell::output(shell::command("python3").args(["-m", "venv", "--clear"]).arg(folder));
    // Debian's python comes without ensurepip, which only shows when it is needed.
    if make().is_err() {
        tools::install_packages(&["python3-venv"]).context("python3 cannot make an environment")?;
        make()?;
    }
    Ok(())
}
