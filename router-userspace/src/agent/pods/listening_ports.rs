//! The listening ports of host-network pods. A listening socket leads to the process that has it open,
//! the process to its cgroup, and the cgroup to the UID of the pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::agent::host::pod_cgroup::pod_of;

/// Interval between two scans of the processes.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum number of ports of one pod; further ports are ignored.
const MAX_PORTS: usize = 256;

/// The listening ports of each pod, by UID.
pub(in crate::agent) type ListeningPorts = BTreeMap<Arc<str>, BTreeSet<u16>>;

/// Scans for the listening ports of the pods in `uids`, and sends them when they change, until a
/// channel closes.
pub(in crate::agent) async fn watch(
    mut uids: watch::Receiver<Vec<Arc<str>>>,
    ports: mpsc::Sender<ListeningPorts>,
) {
    let mut last = ListeningPorts::new();
    loop {
        let wanted = uids.borrow_and_update().clone();
        if !wanted.is_empty() || !last.is_empty() {
            let found = tokio::task::spawn_blocking(move || scan(Path::new("/proc"), &wanted));
            let Ok(found) = found.await else {
                warn!("scan for listening ports failed; no further scans");
                return std::future::pending().await;
            };
            if found != last {
                let count: usize = found.values().map(BTreeSet::len).sum();
                info!(pods = found.len(), ports = count, "listening ports changed");
                last.clone_from(&found);
                if ports.send(found).await.is_err() {
                    return;
                }
            }
        }
        if let Ok(Err(_)) = timeout(SCAN_INTERVAL, uids.changed()).await {
            return;
        }
    }
}

/// The ports on which processes of the pods `uids` listen in this process's network namespace.
fn scan(proc: &Path, uids: &[Arc<str>]) -> ListeningPorts {
    if uids.is_empty() {
        return ListeningPorts::new();
    }
    let uids: HashMap<&str, &Arc<str>> = uids.iter().map(|uid| (&**uid, uid)).collect();
    let own = std::fs::read_link(proc.join("self/ns/net")).ok();
    let mut owners: HashMap<u64, &Arc<str>> = HashMap::new();
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let process = entry.path();
        let Ok(cgroups) = std::fs::read_to_string(process.join("cgroup")) else { continue };
        let uid = pod_of(&cgroups).and_then(|uid| uids.get(uid.as_str()).copied());
        let Some(uid) = uid else { continue };
        if std::fs::read_link(process.join("ns/net")).ok() == own {
            owners.extend(sockets(&process).map(|inode| (inode, uid)));
        }
    }
    let mut found = ListeningPorts::new();
    for table in ["self/net/tcp", "self/net/tcp6"] {
        let table = std::fs::read_to_string(proc.join(table)).unwrap_or_default();
        for (inode, port) in table.lines().skip(1).filter_map(listener) {
            let Some(uid) = owners.get(&inode) else { continue };
            let ports = found.entry(Arc::clone(uid)).or_default();
            if ports.len() < MAX_PORTS {
                ports.insert(port);
            }
        }
    }
    found
}

/// Inodes of the sockets that a process has open.
fn sockets(process: &Path) -> impl Iterator<Item = u64> {
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// Inode and port of a line of /proc/net/tcp{,6} (proc(5)), if the socket listens.
fn listener(line: &str) -> Option<(u64, u16)> {
    const LISTEN: &str = "0A";
    let columns: Vec<&str> = line.split_whitespace().take(10).collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode] = columns[..] else { return None };
    let (_, port) = local.split_once(':')?;
    Some((inode.parse().ok()?, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_are_listeners() {
        let line = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
                    0        0 4711 1 0000000000000000 100 0 0 10 0";
        assert_eq!(listener(line), Some((4711, 8080)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address"), None);
    }
}
