//! The guests' parts: Debian's kernels and programs, fetched once into the user's cache
//! folder, and QEMU.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::{shell, tools, workspace};

const RECIPE: &str = include_str!("fetch.sh");
pub(super) const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";

/// A kernel and its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) version: String,
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

/// Everything that was fetched.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) kernels: Vec<Kernel>,
    /// A root with the guests' programs and their libraries.
    pub(super) tools: PathBuf,
    /// Where the guests' logs stay.
    pub(super) logs: PathBuf,
}

impl Store {
    /// A static busybox, which unpacks modules on any machine.
    pub(super) fn xz(&self) -> PathBuf {
        self.tools.join("bin/busybox")
    }
}

/// Finds kernels, programs and QEMU, or fetches them.
///
/// # Errors
/// They cannot be fetched or installed here.
pub(super) fn store(families: &[&str]) -> Result<Store> {
    let folder = workspace::cache()?.join("kernels");
    let logs = folder.join("logs");
    std::fs::create_dir_all(&logs).context("making the folder of the kernels")?;
    // Two chores at once: the second waits here and then finds the work done.
    let lock = File::create(folder.join("lock")).context("making the kernels' lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for the kernels' lock")?;
    if !cfg!(target_arch = "x86_64") {
        bail!("the guests are x86-64, and this machine is not");
    }
    let tools = folder.join("tools");
    if families.iter().any(|family| !folder.join(family).is_dir()) || !tools.is_dir() {
        fetch(&folder, families)?;
    }
    if shell::which(QEMU).is_none() {
        tools::install_packages(&[QEMU_PACKAGE]).context("the guests need QEMU")?;
    }
    let kernels = families.iter().map(|family| kernel(&folder.join(family)));
    Ok(Store { kernels: kernels.collect::<Result<_>>()?, tools, logs })
}

fn fetch(folder: &Path, families: &[&str]) -> Result<()> {
    if shell::which("apt-get").is_none() {
        bail!("the kernels are Debian's packages, and this is not Debian");
    }
    println!("fetching kernels into {} (about a minute, once)", folder.display());
    let mut command = shell::command("sh");
    shell::run(command.args(["-euc", RECIPE, "kernels"]).arg(folder).args(families))
}

fn kernel(folder: &Path) -> Result<Kernel> {
    let path = folder.join("version");
    let version = std::fs::read_to_string(&path).with_context(|| {
        format!("reading {} (delete its folder to fetch it again)", path.display())
    })?;
    Ok(Kernel {
        version: version.trim().to_owned(),
        image: folder.join("vmlinuz"),
        modules: folder.join("modules"),
    })
}
