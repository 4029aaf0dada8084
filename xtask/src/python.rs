//! Virtual environments in the user's cache folder: real clients and peers, from a file of
//! requirements each.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

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
    let folder = kept(name, &wanted, |folder| {
        println!("making a virtual environment in {}", folder.display());
        make(folder)?;
        pip(&folder.join("bin/python"), &["--requirement", requirements])
    })?;
    Ok(folder.join("bin/python"))
}

/// The folder `name` of the cache, filled by `fill` on first use and whenever `wanted` changes.
///
/// # Errors
/// No cache folder, or `fill` failed.
pub(crate) fn kept(
    name: &str,
    wanted: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    // Two chores at once: the second waits here and then finds the work done.
    let lock = cache.join(format!("{name}.lock"));
    let lock = File::create(lock).with_context(|| format!("making the lock of {name}"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("waiting for the lock of {name}"))?;

    let folder = cache.join(name);
    let stamp = folder.join("requirements.txt");
    if !std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        fill(&folder)?;
        // Written last: a folder without a stamp is filled again.
        std::fs::write(&stamp, wanted).with_context(|| format!("stamping {name}"))?;
    }
    Ok(folder)
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
