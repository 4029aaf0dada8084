//! The cgroup2 root to attach to: a mount that is there, also beside cgroup v1, else one of ours.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

/// Where a cgroup2 file system of our own is mounted on nodes that have none.
const OWN: &str = "/run/pd-router/cgroup";

/// The root of a cgroup2 mount.
///
/// # Errors
/// There is none, and none may be mounted.
pub(super) fn root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(path) = mounted(&mounts, "cgroup2") {
        return Ok(path);
    }
    std::fs::create_dir_all(OWN)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), OWN, Some("cgroup2"), flags, None::<&str>)?;
    Ok(OWN.into())
}

/// Makes sure that `path` is on a bpf file system, mounting one at /sys/fs/bpf if that helps.
///
/// # Errors
/// It is not, and none may be mounted.
pub(super) fn bpf_file_system(path: &Path) -> io::Result<()> {
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

/// Makes sure that tracefs is mounted, which names the tracepoint.
///
/// # Errors
/// It is not, and may not be mounted.
pub(super) fn trace_file_system() -> io::Result<()> {
    const ROOT: &str = "/sys/kernel/tracing";
    let event = |root: &str| Path::new(root).join("events/sock/inet_sock_set_state/id").exists();
    if event(ROOT) || event("/sys/kernel/debug/tracing") {
        return Ok(());
    }
    mount(Some("nodev"), ROOT, Some("tracefs"), MsFlags::empty(), None::<&str>)?;
    Ok(())
}

/// The first mount point of a file system in the lines of mountinfo (proc(5)).
fn mounted(mounts: &str, kind: &str) -> Option<PathBuf> {
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
        assert_eq!(mounted(hybrid, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted(hybrid, "bpf"), None);
    }
}
