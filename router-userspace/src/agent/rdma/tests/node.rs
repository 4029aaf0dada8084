//! A simulated node: netlink answers that a test may change, and its sysfs and proc trees.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::netlink::{NetlinkSource, NldevCommand};
use super::super::report::{DeviceReport, HolderReport, RdmaReport};
use super::super::{Activity, ConfiguredSpeed, HostPaths, Rdma};
use super::golden::{self, Pair};
use super::tree::Tree;

type Question = (NldevCommand, Option<u32>, Option<u32>);

/// Answers by request; a request without an answer gets `EINVAL`, as from the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<Mutex<HashMap<Question, Vec<u8>>>>);

/// Replays the answers.
#[derive(Debug)]
struct Player {
    answers: Answers,
    last: Vec<u8>,
}

impl NetlinkSource for Player {
    fn ask(
        &mut self,
        command: NldevCommand,
        device: Option<u32>,
        port: Option<u32>,
    ) -> io::Result<&[u8]> {
        let answers = self.answers.0.lock();
        let answer = answers.get(&(command, device, port));
        self.last = answer.cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(&self.last)
    }
}

impl Answers {
    fn set(&self, command: NldevCommand, device: Option<u32>, port: Option<u32>, answer: Vec<u8>) {
        self.0.lock().insert((command, device, port), answer);
    }

    fn remove(&self, command: NldevCommand, device: Option<u32>, port: Option<u32>) {
        self.0.lock().remove(&(command, device, port));
    }
}

/// One device (index 0) on a node.
pub(crate) struct Node {
    pub(crate) tree: Tree,
    answers: Answers,
    name: &'static str,
    pub(crate) rdma: Rdma,
    pub(crate) now: Duration,
    pub(crate) activity: Activity,
}

impl Node {
    /// A device of a driver (`enum rdma_driver_id`).
    pub(crate) fn new(name: &'static str, driver: u32, protocol: &str) -> Node {
        Node::with(name, driver, protocol, Vec::new())
    }

    pub(crate) fn with(
        name: &'static str,
        driver: u32,
        protocol: &str,
        speeds: Vec<ConfiguredSpeed>,
    ) -> Node {
        let (tree, answers) = (Tree::new(), Answers::default());
        let device = golden::device(0, name, 0x0216_3eff_fe00_0102, protocol);
        answers.set(NldevCommand::Devices, None, None, device);
        answers.set(NldevCommand::Ports, Some(0), None, golden::port(0, name, (3, "eth1")));
        answers.set(NldevCommand::Driver, Some(0), None, golden::driver(driver));
        let mut node = Node::of(tree, answers, name, speeds);
        node.pairs(&[]);
        node
    }

    /// A node from a recording of a real kernel.
    pub(crate) fn recorded(text: &str) -> Node {
        let (tree, answers) = (Tree::new(), Answers::default());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (kind, rest) = line.split_once(' ').expect("a kind");
            let (what, value) = rest.split_once(' ').expect("a name and a value");
            match kind {
                "netlink" => {
                    let (question, answer) = question(what, value);
                    answers.set(question.0, question.1, question.2, answer);
                }
                "sysfs" => tree.write(what, &format!("{value}\n")),
                "counters" => value.split(' ').for_each(|counter| {
                    let (name, value) = counter.split_once('=').expect("a counter");
                    tree.write(&format!("{what}/{name}"), &format!("{value}\n"));
                }),
                "proc" => tree.write(&format!("proc/{what}/cgroup"), &format!("{value}\n")),
                _ => panic!("{line}"),
            }
        }
        Node::of(tree, answers, "rxe0", Vec::new())
    }

    fn of(tree: Tree, answers: Answers, name: &'static str, speeds: Vec<ConfiguredSpeed>) -> Node {
        let player = Player { answers: answers.clone(), last: Vec::new() };
        let paths = HostPaths {
            sysfs: tree.root().to_owned(),
            proc: tree.root().join("proc"),
            erdma: tree.root().join("dev-erdma"),
        };
        let rdma = Rdma::new(Box::new(player), &paths, speeds);
        let (now, activity) = (Duration::from_secs(1), Activity::default());
        Node { tree, answers, name, rdma, now, activity }
    }

    /// Sets the counters that the device reports.
    pub(crate) fn counts(&self, values: &[(&str, u64)]) {
        let answer = golden::counters(0, self.name, values);
        self.answers.set(NldevCommand::Counters, Some(0), Some(1), answer);
    }

    /// Sets the queue pairs: number, state, sent sequence number, process.
    pub(crate) fn pairs(&mut self, pairs: &[(u32, u8, u32, u32)]) {
        let pairs: Vec<Pair> = pairs
            .iter()
            .map(|(number, state, sent, pid)| Pair {
                number: *number,
                kind: 2,
                state: *state,
                sent: *sent,
                pid: *pid,
            })
            .collect();
        let answer = golden::queue_pairs(0, self.name, &pairs);
        self.answers.set(NldevCommand::QueuePairs, Some(0), None, answer);
    }

    pub(crate) fn connections(&self, ids: &[(u32, u32, &str, &str)]) {
        let address = |text: &str| text.parse().expect("an address");
        let ids: Vec<_> = ids
            .iter()
            .map(|(number, pid, one, other)| (*number, *pid, address(one), address(other)))
            .collect();
        let answer = golden::connections(0, self.name, &ids);
        self.answers.set(NldevCommand::ConnectionIds, Some(0), None, answer);
    }

    /// Makes netlink fail.
    pub(crate) fn without_netlink(&self) {
        self.answers.remove(NldevCommand::Devices, None, None);
    }

    pub(crate) fn without_device(&self) {
        self.answers.set(NldevCommand::Devices, None, None, Vec::new());
    }

    /// Adds a process of a pod.
    pub(crate) fn process(&self, pid: u32, pod: &str) {
        let cgroup = format!("0::/kubepods/burstable/pod{pod}/container\n");
        self.tree.write(&format!("proc/{pid}/cgroup"), &cgroup);
    }

    /// Advances the clock by a second and samples.
    pub(crate) fn second(&mut self) -> RdmaReport {
        self.now += Duration::from_secs(1);
        self.rdma.sample(self.now, &self.activity);
        self.rdma.report(self.now)
    }

    pub(crate) fn device(&mut self) -> DeviceReport {
        self.second().devices.into_iter().next().expect("the device")
    }
}

/// Parses a recorded request and its answer in hexadecimal digits.
fn question(command: &str, rest: &str) -> (Question, Vec<u8>) {
    let all = [
        NldevCommand::Devices,
        NldevCommand::Ports,
        NldevCommand::QueuePairs,
        NldevCommand::ConnectionIds,
        NldevCommand::Driver,
        NldevCommand::Counters,
    ];
    let named = all.into_iter().find(|known| format!("{known:?}") == command);
    let [device, port, digits] = rest.split(' ').collect::<Vec<_>>()[..] else { panic!("{rest}") };
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
    let answer = (0..digits.len()).step_by(2).map(byte).collect();
    ((named.expect(command), device.parse().ok(), port.parse().ok()), answer)
}

/// The pod's holder entry.
pub(crate) fn of<'a>(device: &'a DeviceReport, pod: &str) -> &'a HolderReport {
    let mut holders = device.holders.iter();
    holders.find(|holder| holder.uid.as_deref() == Some(pod)).expect("the pod holds queue pairs")
}
