//! A node made ready for an agent by a container that has its own cgroup and mount namespaces.

use std::path::PathBuf;
use std::process::Command;

use router_tests::folder::Folder;

/// A cgroup that is removed at the end of the test, once no process is in it.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    /// A cgroup of the test's own below the root.
    pub(crate) fn new(name: &str) -> Cgroup {
        let own = Cgroup(cgroup2().join(format!("pd-router-{name}-{}", std::process::id())));
        std::fs::create_dir(&own.0).expect("a cgroup of the test's own");
        own
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It fails only if a process of the test has not ended, which fails the test.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Where this machine has cgroup2 mounted whole.
pub(crate) fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let found = mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let whole = mount.split(' ').nth(3)? == "/" && system.starts_with("cgroup2 ");
        whole.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    });
    found.expect("a cgroup2 mount")
}

#[test]
fn a_container_mounts_what_the_node_lacks_and_its_cgroup_root_is_the_nodes() {
    let root = cgroup2();
    let own = Cgroup::new("prepare");
    let folder = Folder::new("prepare");
    let mounted = folder.path().join("cgroup");
    // The first process of the outer namespace stands for the node's; the inner one is the
    // container. Twice, as when a pod is restarted: the second time there is nothing to do.
    let container = r#"
        umount --lazy /sys/fs/bpf; umount --lazy /sys/kernel/tracing
        "$BINARY" agent --prepare-node --cgroup "$MOUNTED" &&
        "$BINARY" agent --prepare-node --cgroup "$MOUNTED" &&
        stat --file-system --format %T /sys/fs/bpf &&
        test -e /sys/kernel/tracing/events/sock/inet_sock_set_state/id && echo tracefs &&
        stat --file-system --format %T "$MOUNTED" &&
        stat --format %i "$MOUNTED" &&
        grep --count " $MOUNTED " /proc/self/mountinfo
    "#;
    let node = r#"sh -c 'echo $$ > "$CGROUP/cgroup.procs"
        exec unshare --cgroup --mount --propagation private sh -c "$CONTAINER"'"#;
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "--propagation", "private", "--mount-proc"])
        .args(["sh", "-c", node])
        .env("CONTAINER", container)
        .env("CGROUP", &own.0)
        .env("MOUNTED", &mounted)
        .env("BINARY", std::env::var_os("PD_ROUTER_BIN").expect("PD_ROUTER_BIN"))
        .output()
        .expect("unshare runs");
    let inode = std::os::unix::fs::MetadataExt::ino(&root.metadata().expect("the root"));
    let wanted = format!("bpf_fs\ntracefs\ncgroup2fs\n{inode}\n1\n");
    let printed = String::from_utf8_lossy(&output.stdout);
    // What is logged stands on lines of its own.
    let printed: String =
        printed.split_inclusive('\n').filter(|line| !line.contains("INFO")).collect();
    assert_eq!(printed, wanted, "{}", String::from_utf8_lossy(&output.stderr));
}
