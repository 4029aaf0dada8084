//! Control groups of a cluster: one folder a machine in each hierarchy, removed with the cluster.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The folder of all clusters in each hierarchy.
const PARENT: &str = "pd-router-clusters";
/// The group of a machine's services below its own, in version 2; machine.sh names it too.
const SERVICES: &str = "services";
/// Time within which the kernel lets go of a group whose processes have ended.
const REMOVED: Duration = Duration::from_secs(20);

/// The hierarchies that are mounted here, of version 1 and 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(of_mounts(&mounts))
}

fn of_mounts(mounts: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(folder), Some("cgroup" | "cgroup2")) = (words.next(), words.next()) {
            folders.push(folder.into());
        }
    }
    folders
}

/// Makes the groups of a machine and returns one folder for each hierarchy.
///
/// # Errors
/// No hierarchy is mounted, or one cannot be written to.
pub(super) fn create(cluster: &str, machine: &str) -> Result<Vec<PathBuf>> {
    let hierarchies = hierarchies()?;
    if hierarchies.is_empty() {
        bail!("no cgroups are mounted below /sys/fs/cgroup");
    }
    let mut folders = Vec::new();
    for hierarchy in hierarchies {
        let mut folder = hierarchy;
        for part in [PARENT, cluster, machine] {
            hand_on_controllers(&folder);
            let above = folder.clone();
            folder.push(part);
            if let Err(error) = fs::create_dir(&folder)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error).with_context(|| format!("making {}", folder.display()));
            }
            copy_cpusets(&above, &folder)?;
        }
        folders.push(folder);
    }
    Ok(folders)
}

/// In version 2 a group has those controllers alone that its parent hands on. One that cannot be
/// handed on is not there for kubelet either, which then says so.
fn hand_on_controllers(folder: &Path) {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// In version 2 a group with a process hands on no controller: moves the process that made a machine's
/// namespaces to where the machine's services go.
///
/// # Errors
/// A group cannot be made or written to.
pub(super) fn move_down(groups: &[PathBuf], process: u32) -> Result<()> {
    for group in groups.iter().filter(|group| group.join("cgroup.controllers").exists()) {
        let services = group.join(SERVICES);
        fs::create_dir(&services).with_context(|| format!("making {}", services.display()))?;
        fs::write(services.join("cgroup.procs"), process.to_string())
            .with_context(|| format!("moving a process to {}", services.display()))?;
    }
    Ok(())
}

/// In version 1 a new group has no CPU and no memory node, and takes no process.
fn copy_cpusets(from: &Path, to: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let is_version_1 = !to.join("cgroup.controllers").exists();
        if is_version_1 && let Ok(value) = fs::read_to_string(from.join(file)) {
            fs::write(to.join(file), value).with_context(|| format!("writing {file}"))?;
        }
    }
    Ok(())
}

/// Removes the groups of a cluster whose processes have ended; none is no error.
///
/// # Errors
/// A group still has a process after 20 seconds.
pub(super) fn remove(cluster: &str) -> Result<()> {
    let deadline = Instant::now() + REMOVED;
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(PARENT).join(cluster);
        while let Err(error) = remove_tree(&folder) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("removing {}", folder.display()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Another cluster may still be in it.
        _ = fs::remove_dir(hierarchy.join(PARENT));
    }
    Ok(())
}

/// Removes the folders from the innermost on; their files belong to the kernel.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = of_mounts(mounts);
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(found, expected);
    }
}
