//! Owners of queue pairs: from a process to its pod, by the cgroups that the kubelet creates.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use router_core::provenance::Measured;
use serde::Serialize;

use crate::agent::host::pod_cgroup::pod_of;
use crate::agent::rdma::netlink::QueuePair;

/// Maximum number of owners of one device; the traffic of further owners is not attributed.
pub(in crate::agent) const MAX_OWNERS: usize = 1_024;
/// `enum ib_qp_type`: the management queue pairs that every port has.
const MANAGEMENT: [u8; 2] = [0, 1];
/// `enum ib_qp_state`.
const READY_TO_RECEIVE: u8 = 2;
const READY_TO_SEND: u8 = 3;
/// Maximum size of a `cgroup` file: one line with a path for each of the hierarchies of cgroup v1.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// The inode of the host's PID namespace (`PROC_PID_INIT_INO`).
const HOST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// The owner of a queue pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::agent) enum Owner {
    /// A process of the pod with this UID.
    Pod(Arc<str>),
    /// A process outside any pod.
    Host,
    /// The kernel: SMC-R, NFS, the connection manager.
    Kernel,
    /// A process that this PID namespace does not show.
    Unseen,
}

/// The process table, usually `/proc`.
#[derive(Clone, Debug)]
pub(in crate::agent) struct ProcessTable {
    root: PathBuf,
}

impl ProcessTable {
    pub(in crate::agent) fn new(root: &Path) -> ProcessTable {
        ProcessTable { root: root.to_owned() }
    }

    /// Whether the processes of all pods are visible: the agent's pod has `hostPID`.
    pub(in crate::agent) fn sees_all(&self) -> bool {
        let namespace = std::fs::metadata(self.root.join("self/ns/pid"));
        namespace.is_ok_and(|namespace| namespace.ino() == HOST_PID_NAMESPACE)
    }

    fn owner(&self, pid: u32) -> Owner {
        let mut text = String::new();
        let read = File::open(self.root.join(pid.to_string()).join("cgroup"))
            .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => pod_of(&text).map_or(Owner::Host, |uid| Owner::Pod(uid.into())),
            // The process ended after the queue pairs were listed.
            Err(_) => Owner::Unseen,
        }
    }
}

/// The owners of processes within one scan. Each process is looked up once. Nothing is kept for the
/// next scan, since a process id may be reused.
#[derive(Debug)]
pub(in crate::agent) struct OwnerLookup<'a> {
    processes: &'a ProcessTable,
    cache: HashMap<u32, Owner>,
}

impl OwnerLookup<'_> {
    pub(in crate::agent) fn new(processes: &ProcessTable) -> OwnerLookup<'_> {
        OwnerLookup { processes, cache: HashMap::new() }
    }

    pub(in crate::agent) fn of(&mut self, pid: u32) -> &Owner {
        self.cache.entry(pid).or_insert_with(|| self.processes.owner(pid))
    }
}

/// Queue pairs by state (`enum ib_qp_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::agent) struct QueuePairStates {
    pub(in crate::agent) reset: u32,
    pub(in crate::agent) init: u32,
    pub(in crate::agent) ready_to_receive: u32,
    pub(in crate::agent) ready_to_send: u32,
    /// The send queue is drained or in error.
    pub(in crate::agent) send_stopped: u32,
    pub(in crate::agent) error: u32,
}

impl QueuePairStates {
    fn add(&mut self, state: u8) {
        let slot = match state {
            0 => &mut self.reset,
            1 => &mut self.init,
            READY_TO_RECEIVE => &mut self.ready_to_receive,
            READY_TO_SEND => &mut self.ready_to_send,
            4 | 5 => &mut self.send_stopped,
            _ => &mut self.error,
        };
        *slot += 1;
    }

    /// Queue pairs that can move data: ready to receive or ready to send.
    pub(in crate::agent) fn active(&self) -> u32 {
        self.ready_to_send + self.ready_to_receive
    }
}

/// A device's queue pairs by owner, without management queue pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct Holders(BTreeMap<Owner, QueuePairStates>);

impl Holders {
    pub(in crate::agent) fn count(pairs: &[QueuePair], owners: &mut OwnerLookup<'_>) -> Holders {
        let mut holders = BTreeMap::<Owner, QueuePairStates>::new();
        for pair in pairs.iter().filter(|pair| !MANAGEMENT.contains(&pair.kind)) {
            let owner = owner_of(pair, owners);
            if let Some(states) = holders.get_mut(owner) {
                states.add(pair.state);
            } else if holders.len() < MAX_OWNERS {
                holders.entry(owner.clone()).or_default().add(pair.state);
            }
        }
        Holders(holders)
    }

    pub(in crate::agent) fn iter(&self) -> impl Iterator<Item = (&Owner, &QueuePairStates)> {
        self.0.iter()
    }

    /// Queue pairs that can move data.
    pub(in crate::agent) fn active(&self) -> u32 {
        self.0.values().map(QueuePairStates::active).sum()
    }

    /// The owner's share of the device's traffic: its share of the active queue pairs. It is exact if
    /// no other owner has any.
    pub(in crate::agent) fn share(&self, owner: &Owner) -> Measured<f64> {
        let own = self.0.get(owner).map_or(0, QueuePairStates::active);
        match self.active() {
            0 => Measured::exact(0.0),
            all if own == all => Measured::exact(1.0),
            _ if own == 0 => Measured::exact(0.0),
            all => Measured::estimated(f64::from(own) / f64::from(all)),
        }
    }

    pub(in crate::agent) fn contains(&self, owner: &Owner) -> bool {
        self.0.contains_key(owner)
    }

    /// The owners of both, each with the larger of its two counts.
    pub(super) fn union(&self, other: &Holders) -> Holders {
        let mut both = self.0.clone();
        for (owner, states) in &other.0 {
            let known = both.entry(owner.clone()).or_default();
            if states.active() > known.active() {
                *known = *states;
            }
        }
        Holders(both)
    }
}

fn owner_of<'a>(pair: &QueuePair, owners: &'a mut OwnerLookup<'_>) -> &'a Owner {
    match pair.pid {
        Some(pid) => owners.of(pid),
        None if pair.is_kernel => &Owner::Kernel,
        None => &Owner::Unseen,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use router_core::provenance::Provenance;

    use super::*;
    use crate::agent::rdma::tests::tree::Tree;

    const UID: &str = "7b3a1d52-9c0e-4f4e-8a56-0d9f2b6c1e77";

    #[test]
    fn a_process_belongs_to_a_pod_or_the_host_or_is_unseen() {
        let tree = Tree::new();
        tree.write("10/cgroup", &format!("0::/kubepods/pod{UID}/x\n"));
        tree.write("11/cgroup", "0::/system.slice/sshd.service\n");
        let processes = ProcessTable::new(tree.root());
        let mut owners = OwnerLookup::new(&processes);
        assert_eq!(owners.of(10), &Owner::Pod(UID.into()));
        assert_eq!(owners.of(11), &Owner::Host);
        assert_eq!(owners.of(12), &Owner::Unseen);
        assert!(!processes.sees_all());
    }

    pub(in crate::agent) fn pod(name: &str) -> Owner {
        Owner::Pod(name.into())
    }

    pub(in crate::agent) fn holders(owners: &[(Owner, u32)]) -> Holders {
        let states =
            |ready_to_send| QueuePairStates { ready_to_send, ..QueuePairStates::default() };
        Holders(owners.iter().map(|(owner, count)| (owner.clone(), states(*count))).collect())
    }

    #[test]
    fn one_owner_is_exact_and_two_are_split_by_queue_pairs() {
        let alone = holders(&[(pod("a"), 8), (pod("idle"), 0)]);
        assert_eq!(alone.share(&pod("a")), Measured::exact(1.0));
        assert_eq!(alone.share(&pod("idle")), Measured::exact(0.0));
        let both = holders(&[(pod("a"), 6), (pod("b"), 2)]);
        assert_eq!(both.share(&pod("a")), Measured::estimated(0.75));
        assert_eq!(both.share(&pod("b")), Measured::estimated(0.25));
        // Queue pairs of the kernel (SMC-R) move data too.
        let kernel = holders(&[(pod("a"), 1), (Owner::Kernel, 1)]);
        assert_eq!(kernel.share(&pod("a")).provenance(), Provenance::Estimated);
    }

    #[test]
    fn states_are_counted_without_management_queue_pairs() {
        let processes = ProcessTable::new(std::path::Path::new("/nowhere"));
        let pair = |kind, state| QueuePair { kind, state, is_kernel: true, ..Default::default() };
        let pairs: Vec<QueuePair> =
            [(0, 3), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (4, 6)]
                .map(|(kind, state)| pair(kind, state))
                .into();
        let holders = Holders::count(&pairs, &mut OwnerLookup::new(&processes));
        let expected = QueuePairStates {
            reset: 1,
            init: 1,
            ready_to_receive: 1,
            ready_to_send: 1,
            send_stopped: 1,
            error: 1,
        };
        assert_eq!(holders.iter().collect::<Vec<_>>(), [(&Owner::Kernel, &expected)]);
        assert_eq!(holders.active(), 2);
    }
}
