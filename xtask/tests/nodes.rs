//! `cargo xtask cluster` as a user runs it: real nodes that are ready, and nothing that stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time within which the kernel has removed what a killed cluster had.
const GONE: Duration = Duration::from_secs(60);
const READY: &str =
    r#"{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}"#;

/// A cluster of a test, in a network namespace that stands for the machine's.
struct Site {
    name: String,
    machine: Namespace,
}

impl Drop for Site {
    fn drop(&mut self) {
        let logs: &[&str] = if std::thread::panicking() { &[] } else { &["--logs"] };
        _ = self.xtask(&["down"], logs);
    }
}

impl Site {
    fn new(test: &str) -> Site {
        // A process of its own for each test.
        let name = format!("{test}-{}", std::process::id());
        Site { name, machine: Namespace::new() }
    }

    fn command(&self, action: &[&str], more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("cluster").args(action).args(["--name", &self.name]).args(more);
        command
    }

    fn xtask(&self, action: &[&str], more: &[&str]) -> Output {
        let mut command = self.command(action, more);
        self.machine.run(move || command.output()).expect("starting xtask")
    }

    /// What an action printed, which must succeed.
    fn done(&self, action: &[&str], more: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.xtask(action, more);
        let [stdout, stderr] =
            [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(status.success(), "{action:?} {more:?}: {status}\n{stdout}\n{stderr}");
        stdout
    }

    /// Starts `up` and returns its process once it has printed a line that starts so.
    fn up_until(&self, line: &str) -> u32 {
        let mut command = self.command(&["up"], &["--nodes", "1"]);
        command.stdout(Stdio::piped());
        let mut process = self.machine.run(move || command.spawn()).expect("starting xtask");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let found = output.lines().map_while(Result::ok).any(|printed| printed.starts_with(line));
        assert!(found, "`up` ended before `{line}`");
        let id = process.id();
        std::thread::spawn(move || process.wait());
        id
    }

    /// Interfaces and packet filter rules of the network that `up` was started in.
    fn network(&self) -> String {
        self.machine.sh("ip -o link; ip -o addr; ip route; nft list ruleset")
    }

    /// What of this cluster is on the machine: processes, mounts, control groups and files.
    fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        let words =
            [format!("/clusters/{}/", self.name), format!("pd-router-clusters/{}", self.name)];
        for process in fs::read_dir("/proc").expect("processes").filter_map(Result::ok) {
            // Of a process that has ended its new parent has yet to take note.
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            if status.contains("State:\tZ") {
                continue;
            }
            for file in ["cmdline", "mountinfo", "cgroup"] {
                let path = process.path().join(file);
                // It may end meanwhile.
                let text = fs::read(&path).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                if words.iter().any(|word| text.contains(word)) {
                    traces.insert(path.display().to_string());
                }
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let groups = mounts.lines().filter(|line| line.starts_with("cgroup"));
        for folder in groups.filter_map(|line| line.split(' ').nth(1)) {
            let group = Path::new(folder).join("pd-router-clusters").join(&self.name);
            if group.exists() {
                traces.insert(group.display().to_string());
            }
        }
        let files = fs::read_dir(clusters().join(&self.name)).into_iter().flatten();
        let files = files.filter_map(Result::ok).filter(|file| file.file_name() != "logs");
        traces.extend(files.map(|file| file.path().display().to_string()));
        traces
    }

    fn wait_until_gone(&self) {
        let deadline = Instant::now() + GONE;
        while !self.traces().is_empty() {
            assert!(Instant::now() < deadline, "still there: {:#?}", self.traces());
            std::thread::yield_now();
        }
    }
}

fn clusters() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().expect("a home").join(".cache");
    cache.unwrap_or_else(home).join("pd-router/clusters")
}

#[test]
fn two_nodes_are_ready_serve_a_service_and_leave_nothing() {
    let site = Site::new("two-nodes");
    let network = site.network();
    site.done(&["up"], &["--nodes", "2"]);
    let ready =
        site.done(&["kubectl"], &["get", "nodes", "--output", &format!("jsonpath={READY}")]);
    assert_eq!(ready, "node-1=True node-2=True ");
    assert!(site.done(&["up"], &["--nodes", "2"]).contains("is up"), "a second time is no error");

    // A pod is reached through a Service: the pods' network, routes between nodes and kube-proxy.
    let expose =
        ["expose", "deployment/coredns", "--name=health", "--port=8080", "-n", "kube-system"];
    site.done(&["kubectl"], &expose);
    let scale = ["scale", "deployment/coredns", "--replicas=2", "-n", "kube-system"];
    site.done(&["kubectl"], &scale);
    let rollout =
        ["rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=120s"];
    site.done(&["kubectl"], &rollout);
    let address =
        ["get", "service/health", "-n", "kube-system", "--output=jsonpath={.spec.clusterIP}"];
    let url = format!("http://{}:8080/health", site.done(&["kubectl"], &address));
    let curl = ["curl", "-sS", "--retry", "20", "--retry-all-errors", "--retry-delay", "1", &url];
    assert_eq!(site.done(&["exec"], &curl), "OK");

    assert_eq!(site.network(), network, "while it runs");
    assert!(!site.traces().is_empty(), "what is looked for is there while it runs");
    site.done(&["down"], &[]);
    assert_eq!(site.traces(), BTreeSet::new());
    assert_eq!(site.network(), network);
    site.done(&["down"], &["--logs"]);
    let mut files = fs::read_dir(clusters()).expect("clusters").filter_map(Result::ok);
    let left = files.find(|file| file.file_name().to_string_lossy().starts_with(&site.name));
    assert!(left.is_none(), "{left:?}");
}

#[test]
fn an_up_that_is_killed_leaves_nothing() {
    let site = Site::new("killed");
    let network = site.network();
    for step in ["making the namespaces of 2 machines ...", "waiting for the API server ..."] {
        let up = site.up_until(step);
        assert!(!site.traces().is_empty(), "{step}");
        kill(Pid::from_raw(up.cast_signed()), Signal::SIGKILL).expect("killing `up`");
        site.wait_until_gone();
        assert_eq!(site.network(), network, "{step}");
    }
}

#[test]
fn two_clusters_do_not_meet_and_down_removes_what_a_killed_supervisor_left() {
    let (one, other) = (Site::new("one"), Site::new("other"));
    one.done(&["up"], &["--nodes", "1"]);
    other.done(&["up"], &["--nodes", "1"]);
    let address = ["get", "node/node-1", "--output=jsonpath={.status.addresses[0].address}"];
    let [mine, theirs] = [&one, &other].map(|site| site.done(&["kubectl"], &address));
    assert_ne!(mine, theirs);
    let kubelet = |address: &str| format!("https://{address}:10250/healthz");
    let curl = ["curl", "-sSk", "--max-time", "2"];
    assert!(one.xtask(&["exec"], &[&curl[..], &[&kubelet(&mine)]].concat()).status.success());
    assert!(!one.xtask(&["exec"], &[&curl[..], &[&kubelet(&theirs)]].concat()).status.success());

    let lock = clusters().join(format!("{}.lock", one.name));
    let supervisor = fs::read_to_string(lock).expect("the supervisor's id").parse().expect("an id");
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).expect("killing the supervisor");
    one.done(&["down"], &[]);
    assert_eq!(one.traces(), BTreeSet::new());
    other.done(&["kubectl"], &["get", "--raw", "/readyz"]);
}
