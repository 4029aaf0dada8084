//! Virtual environments in the user's cache folder: real clients and peers, from a file of
//! requirements each.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{setup, shell, workspace};

/// The python of the environment with the official OpenAI client.
///
/// # Errors
/// As [`environment`].
pub(crate) fn venv() -> Result<PathBuf> {
    environment("venv", "tests/clients/requirements.txt")
}

/// The python of the environment `name`, made on first use and whenever its requirements change.
///
/// # Errors
/// No python, no venv module, or the registry cannot be reached.
pub(crate) fn environment(name: &str, requirements: &str) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let file = workspace::root().join(requirements);
    let wanted =
        std::fs::read_to_string(&file).with_context(|| format!("reading {requirements}"))?;
    // Two chores at once: the second waits here and then finds the work done.
    let lock = cache.join(format!("{name}.lock"));
    let lock = File::create(lock).context("making the environment's lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for the environment's lock")?;

    let folder = cache.join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    println!("making a virtual environment in {}", folder.display());
    make(&folder)?;
    let mut pip = shell::command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    shell::run(pip.arg("--requirement").arg(&file))?;
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
