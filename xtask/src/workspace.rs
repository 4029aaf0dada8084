//! Where things are: the workspace, the user's cache folder, cargo and what it builds.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace")
}

/// `~/.cache/pd-router`, made if missing; what is in it can be deleted at any time.
///
/// # Errors
/// No home folder is known, or the folder cannot be made.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| Path::new(path).is_absolute())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .context("no cache folder: neither XDG_CACHE_HOME nor HOME is set")?;
    let folder = base.join("pd-router");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub(crate) fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").filter(|name| !name.is_empty());
    root().join(named.unwrap_or_else(|| "target".into()))
}

/// The cargo that runs this chore.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
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
    let cache = cache()?;
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
