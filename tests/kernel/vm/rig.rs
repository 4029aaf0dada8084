//! Two soft RoCE devices on the two ends of one veth, and pods as the kubelet makes them:
//! processes in cgroups that carry a pod's UID.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netns::Node;
use router_tests::node_manifests::{PodEntry, prefill};
use router_tests::patience;
use serde_json::Value;

/// The devices are of the machine's own network, and so of one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// The end that writes and reads, and the end whose memory is written and read.
pub(super) const CLIENT: &str = "10.7.0.1";
pub(super) const SERVER: &str = "10.7.0.2";
/// Longer than any wait takes on a usual machine.
const USUAL_PATIENCE: Duration = Duration::from_secs(120);

/// UIDs as Kubernetes makes them.
pub(super) const UIDS: [&str; 3] = [
    "11111111-2222-4333-8444-555555555501",
    "11111111-2222-4333-8444-555555555502",
    "11111111-2222-4333-8444-555555555503",
];

/// The two ends of the wire.
const LINKS: [&str; 2] = ["wa", "wb"];
/// Priority of the filter that drops packets, behind those of the agent.
const PRIORITY: u32 = 60_000;

/// Where packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    BeforeCounting,
    BehindCounting,
}

/// A link that loses packets, until this value is dropped.
pub(super) struct Losing<'a> {
    rig: &'a Rig,
    side: Loss,
}

impl Losing<'_> {
    /// Packets that were lost.
    pub(super) fn lost(&self) -> u64 {
        let count = |link| {
            let shown = self.rig.node.netns.sh(&match self.side {
                Loss::BeforeCounting => format!("tc -s qdisc show dev {link} root"),
                Loss::BehindCounting => format!("tc -s filter show dev {link} ingress"),
            });
            let dropped = shown.split("(dropped ").nth(1).and_then(|rest| rest.split(',').next());
            dropped.and_then(|n| n.parse::<u64>().ok()).unwrap_or_else(|| panic!("{shown}"))
        };
        LINKS.into_iter().map(count).sum()
    }
}

impl Drop for Losing<'_> {
    fn drop(&mut self) {
        for link in LINKS {
            self.rig.node.netns.sh(&match self.side {
                Loss::BeforeCounting => format!("tc qdisc del dev {link} root"),
                Loss::BehindCounting => {
                    format!("tc filter del dev {link} ingress prio {PRIORITY}")
                }
            });
        }
    }
}

/// The machine with its devices, while a test has it.
pub(super) struct Rig {
    pub(super) node: Node,
    _machine: MutexGuard<'static, ()>,
}

impl Rig {
    /// Makes the link and the devices unless they exist.
    pub(super) fn new() -> Rig {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let node = Node::machine();
        if !PathBuf::from("/sys/class/infiniband/rxe1").exists() {
            node.netns.sh(&format!(
                "ip link add wa type veth peer name wb
                 for link in all wa wb; do
                     echo 0 > /proc/sys/net/ipv4/conf/$link/rp_filter
                     echo 1 > /proc/sys/net/ipv4/conf/$link/accept_local
                 done
                 # The link drops only what a test configures.
                 echo 100000 > /proc/sys/net/core/netdev_max_backlog
                 ip addr add {CLIENT}/24 dev wa
                 ip addr add {SERVER}/24 dev wb
                 ip link set wa up
                 ip link set wb up
                 # Both ends are this machine's: only what came over the wire is for itself.
                 ip rule add pref 1 iif wa lookup local
                 ip rule add pref 1 iif wb lookup local
                 ip rule add pref 10 to {SERVER} lookup 101
                 ip rule add pref 10 to {CLIENT} lookup 102
                 ip rule add pref 100 lookup local
                 ip rule del pref 0
                 ip route add {SERVER} dev wa src {CLIENT} table 101
                 ip route add {CLIENT} dev wb src {SERVER} table 102
                 ip neigh add {SERVER} dev wa lladdr $(cat /sys/class/net/wb/address) nud permanent
                 ip neigh add {CLIENT} dev wb lladdr $(cat /sys/class/net/wa/address) nud permanent
                 rdma link add rxe0 type rxe netdev wa
                 rdma link add rxe1 type rxe netdev wb"
            ));
        }
        Rig { node, _machine: machine }
    }

    /// Makes the wire lose packets, both ways: one in fifty on its way to where they are counted, or
    /// on their way from there.
    pub(super) fn losing(&self, side: Loss) -> Losing<'_> {
        for link in LINKS {
            self.node.netns.sh(&match side {
                Loss::BeforeCounting => {
                    format!("tc qdisc add dev {link} root netem loss 2% limit 100000")
                }
                // XDP comes before tc.
                Loss::BehindCounting => format!(
                    "# The agent has it there already where it knows no tcx.
                     tc qdisc add dev {link} clsact || true
                     tc filter add dev {link} ingress prio {PRIORITY} protocol ip \
                         matchall action pass random netrand drop 50"
                ),
            });
        }
        Losing { rig: self, side }
    }

    /// Starts a program in the pod of this number, as a container of it.
    pub(super) fn start(&self, pod: usize, command: &str) -> Run {
        // As containerd and the systemd driver call it.
        let uid = UIDS[pod].replace('-', "_");
        let group = format!(
            "/sys/fs/cgroup/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{:064x}.scope",
            pod + 1
        );
        let script =
            format!("mkdir -p {group}; echo $$ > {group}/cgroup.procs; exec {command} 2>&1");
        let command = command.to_owned();
        let child = self.node.netns.run(move || {
            let mut shell = Command::new("sh");
            shell.args(["-ec", &script]).stdout(Stdio::piped()).spawn().expect("a shell")
        });
        Run { child, command }
    }

    /// A server in one pod and its client in another, until both are done.
    pub(super) fn traffic(&self, pods: (usize, usize), server: &str, client: &str) {
        let server = self.serve(pods.1, server, 18_515);
        self.start(pods.0, client).done();
        // It ends with its client. rping's server exits with an error then.
        server.ended();
    }

    /// A server that listens on a TCP port, as perftest does, or with the connection manager.
    pub(super) fn serve(&self, pod: usize, command: &str, port: u16) -> Run {
        let server = self.start(pod, command);
        let listens = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // The local end, and the state.
            let end = format!(":{port:04X}");
            matches!(words[..], [_, local, _, "0A", ..] if local.ends_with(&end))
        };
        until("the server listening", || {
            let sockets = self.node.netns.sh("cat /proc/net/tcp /proc/net/tcp6");
            // rping waits by the connection manager.
            sockets.lines().any(listens)
                || self.node.netns.sh("rdma resource show cm_id").contains("state LISTEN")
        });
        server
    }

    /// What the device has counted, once it counts no more.
    pub(super) fn settled(&self, device: &str) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        until("counters that rest", || {
            let now = self.statistic(device);
            let before = last.replace(now.clone());
            before == now
        });
        last.into_inner()
    }

    /// What the device has counted, by the names of its counters.
    pub(super) fn statistic(&self, device: &str) -> Value {
        let text = self.node.netns.sh(&format!("rdma -j statistic show link {device}/1"));
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all.get(0).expect("a device").clone()
    }
}

/// A program in a pod; ends with the test.
pub(super) struct Run {
    child: Child,
    command: String,
}

impl Run {
    /// Waits for its good end.
    pub(super) fn done(self) {
        let command = self.command.clone();
        let (status, said) = self.ended();
        assert!(status.success(), "`{command}`: {status}: {said}");
    }

    /// Waits for its end; what it said.
    pub(super) fn ended(self) -> (ExitStatus, String) {
        self.ended_by(|| ())
    }

    /// As [`Run::ended`], with something that helps it to end.
    pub(super) fn ended_by(mut self, nudge: impl Fn()) -> (ExitStatus, String) {
        let mut output = self.child.stdout.take().expect("a pipe");
        let reader = std::thread::spawn(move || {
            let mut said = String::new();
            _ = output.read_to_string(&mut said);
            said
        });
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting") {
                break status;
            }
            assert!(start.elapsed() < patience(USUAL_PATIENCE), "`{}` does not end", self.command);
            nudge();
            std::thread::sleep(Duration::from_millis(20));
        };
        (status, reader.join().expect("the reading thread"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub(super) fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < patience(USUAL_PATIENCE), "not {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The pod of this number, at the address of its device.
pub(super) fn pod(
    number: usize,
    name: &'static str,
    address: &str,
    role: &'static str,
) -> PodEntry {
    let address = address.parse().expect("an address");
    PodEntry { uid: UIDS[number].to_owned(), role, ..prefill(name, address) }
}
