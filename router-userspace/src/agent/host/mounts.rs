//! The file systems that the agent needs: cgroup2 (also beside cgroup v1), bpf and tracefs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where the agent mounts cgroup2 on nodes that have no mount of it.
const OWN_MOUNT: &str = "/run/pd-router/cgroup";

/// The root of a cgroup2 mount, which is made if there is none.
///
/// # Errors
/// There is none, and it cannot be mounted.
pub(in crate::agent) fn cgroup_root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(path) = mount_point(&mounts, "cgroup2") {
        return Ok(path);
    }
    mount_cgroup2(OWN_MOUNT.as_ref())?;
    Ok(OWN_MOUNT.into())
}

fn mount_cgroup2(at: &Path) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("none"), at, Some("cgroup2"), flags, None::<&str>)?)
}

/// Mounts the file systems that the node lacks: bpf, tracefs, and cgroup2 at `cgroup` with the root of
/// the node. Runs in a container with the PID namespace of the node.
///
/// # Errors
/// The bpf file system or cgroup2 cannot be mounted.
pub(in crate::agent) fn prepare(pin_dir: &Path, cgroup: &Path) -> anyhow::Result<()> {
    bpf_file_system(pin_dir).context("a bpf file system")?;
    // Not an error: the agent counts without it, and reports what is missing.
    if let Err(error) = trace_file_system() {
        tracing::warn!(%error, "cannot mount tracefs");
    }
    if statfs(cgroup).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Ok(());
    }
    // The root of a new mount is that of the cgroup namespace, so it must be made in the node's.
    if let Err(error) = join_cgroup_namespace("/proc/1/ns/cgroup".as_ref()) {
        // Not an error: the agent counts without it, and reports what is missing.
        tracing::warn!(
            %error,
            missing = "cgroup2 of the node, needed for connections (sock_ops)",
            "cannot join the node's cgroup namespace"
        );
        return Ok(());
    }
    mount_cgroup2(cgroup).with_context(|| format!("cgroup2 at {}", cgroup.display()))?;
    tracing::info!(path = %cgroup.display(), "cgroup2 mounted");
    Ok(())
}

fn join_cgroup_namespace(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWCGROUP)?)
}

/// Ensures that `path` is on a bpf file system, and mounts one at /sys/fs/bpf if `path` is below it.
///
/// # Errors
/// `path` is not on a bpf file system, and it cannot be mounted.
pub(in crate::agent) fn bpf_file_system(path: &Path) -> io::Result<()> {
    let on_bpf = || {
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        nix::sys::statfs::statfs(existing)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::FsType(libc::BPF_FS_MAGIC))
    };
    if on_bpf() {
        return Ok(());
    }
    const ROOT: &str = "/sys/fs/bpf";
    if path.starts_with(ROOT) {
        mount(Some("bpf"), ROOT, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    }
    if on_bpf() {
        return Ok(());
    }
    Err(io::Error::other(format!("{} is not on a bpf file system", path.display())))
}

/// Ensures that tracefs is mounted; it has the id of the tracepoint.
///
/// # Errors
/// It cannot be mounted.
pub(in crate::agent) fn trace_file_system() -> io::Result<()> {
    const ROOT: &str = "/sys/kernel/tracing";
    let event = |root: &str| Path::new(root).join("events/sock/inet_sock_set_state/id").exists();
    if event(ROOT) || event("/sys/kernel/debug/tracing") {
        return Ok(());
    }
    mount(Some("nodev"), ROOT, Some("tracefs"), MsFlags::empty(), None::<&str>)?;
    Ok(())
}

/// The first mount point of a file system in the lines of mountinfo (proc(5)).
fn mount_point(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let is_root = mount.split(' ').nth(3) == Some("/");
        (is_root && system.split(' ').next() == Some(kind))
            .then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_one() {
        let hybrid = "25 20 0:21 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw\n\
            26 25 0:22 / /sys/fs/cgroup/cpu rw shared:5 - cgroup cgroup rw,cpu\n\
            27 25 0:23 /sub /mnt/part rw - cgroup2 cgroup2 rw\n\
            28 25 0:23 / /sys/fs/cgroup/unified rw shared:6 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(hybrid, "bpf"), None);
    }
}
