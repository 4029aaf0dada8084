//! Whose a queue pair is: from its process to the pod, by the cgroups that kubelet makes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::kubepods::pod_of;

/// A line for each of the dozen hierarchies of cgroup v1, and a path each.
const LONGEST_FILE: u64 = 64 << 10;
/// The inode of the PID namespace that sees all (`PROC_PID_INIT_INO`).
const HOST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Who holds a queue pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Owner {
    /// The pod's UID, as the API has it.
    Pod(Arc<str>),
    /// A process of no pod.
    Host,
    /// The kernel: SMC-R, NFS, the connection manager.
    Kernel,
    /// A process that this PID namespace does not see.
    Unseen,
}

/// The process table, usually `/proc`.
#[derive(Clone, Debug)]
pub(super) struct Processes {
    root: PathBuf,
}

impl Processes {
    pub(super) fn new(root: &Path) -> Processes {
        Processes { root: root.to_owned() }
    }

    /// Whether processes of all pods are seen: the pod of the agent has `hostPID`.
    pub(super) fn sees_all(&self) -> bool {
        let namespace = std::fs::metadata(self.root.join("self/ns/pid"));
        namespace.is_ok_and(|namespace| namespace.ino() == HOST_PID_NAMESPACE)
    }

    fn owner(&self, pid: u32) -> Owner {
        let mut text = String::new();
        let read = File::open(self.root.join(pid.to_string()).join("cgroup"))
            .and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text));
        match read {
            Ok(_) => pod_of(&text).map_or(Owner::Host, |uid| Owner::Pod(uid.into())),
            // It ended between the two questions; its queue pairs go with it.
            Err(_) => Owner::Unseen,
        }
    }
}

/// Owners of one round: each process is looked up once, and none is remembered, for its number
/// may be another's in the next round.
#[derive(Debug)]
pub(super) struct Owners<'a> {
    processes: &'a Processes,
    known: HashMap<u32, Owner>,
}

impl Owners<'_> {
    pub(super) fn new(processes: &Processes) -> Owners<'_> {
        Owners { processes, known: HashMap::new() }
    }

    pub(super) fn of(&mut self, pid: u32) -> &Owner {
        self.known.entry(pid).or_insert_with(|| self.processes.owner(pid))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree::Tree;
    use super::*;

    const UID: &str = "7b3a1d52-9c0e-4f4e-8a56-0d9f2b6c1e77";

    #[test]
    fn a_process_is_a_pods_or_the_hosts_or_gone() {
        let tree = Tree::new();
        tree.write("10/cgroup", &format!("0::/kubepods/pod{UID}/x\n"));
        tree.write("11/cgroup", "0::/system.slice/sshd.service\n");
        let processes = Processes::new(tree.root());
        let mut owners = Owners::new(&processes);
        assert_eq!(owners.of(10), &Owner::Pod(UID.into()));
        assert_eq!(owners.of(11), &Owner::Host);
        assert_eq!(owners.of(12), &Owner::Unseen);
        assert!(!processes.sees_all());
    }
}
