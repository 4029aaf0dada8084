//! The virtual environment with the official OpenAI client, in the user's cache folder.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{setup, shell, workspace};

/// What the tests' scripts import; a file, so that a change makes a new environment.
const REQUIREMENTS: &str = "tests/clients/requirements.txt";

/// The environment's python, made on first use.
///
/// # Errors
/// No python, no venv module, or the registry cannot be reached.
pub(crate) fn venv() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let requirements = workspace::root().join(REQUIREMENTS);
    let wanted = std::fs::read_to_string(&requirements)
        .with_context(|| format!("reading {REQUIREMENTS}"))?;
    // Two chores at once: the second waits here and then finds the work done.
    let lock = File::create(cache.join("venv.lock")).context("making the environment's lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for the environment's lock")?;

    let folder = cache.join("venv");
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    println!("making a virtual environment in {}", folder.display());
    make(&folder)?;
    let mut pip = shell::command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    shell::run(pip.arg("--requirement").arg(&requirements))?;
    // Last: an environment without its stamp is made anew.
    std::fs::write(&stamp, wanted).context("stamping the environment")?;
    Ok(python)
}

fn make(folder: &std::path::Path) -> Result<()> {
    if shell::which("python3").is_none() {
        setup::install(&["python3", "python3-venv"]).context("python3 is missing")?;
    }
    let make =
        || shell::output(shell::command("python3").args(["-m", "venv", "--clear"]).arg(folder));
    // Debian's python comes without ensurepip, which only shows when it is needed.
    if make().is_err() {
        setup::install(&["python3-venv"]).context("python3 cannot make an environment")?;
        make()?;
    }
    Ok(())
}
