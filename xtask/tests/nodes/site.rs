//! A cluster of a test, and what it has on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use netns::Namespace;
use nix::unistd::Pid;

/// Time within which the kernel has removed what a killed cluster had.
const GONE: Duration = Duration::from_secs(60);

/// A cluster of a test, in a network namespace that stands for the machine's.
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) machine: Namespace,
}

impl Drop for Site {
    fn drop(&mut self) {
        let logs: &[&str] = if std::thread::panicking() { &[] } else { &["--logs"] };
        _ = self.xtask(&["down"], logs);
    }
}

impl Site {
    pub(crate) fn new(test: &str) -> Site {
        // A process of its own for each test.
        let name = format!("{test}-{}", std::process::id());
        Site { name, machine: Namespace::new() }
    }

    pub(crate) fn command(&self, action: &[&str], more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("cluster").args(action).args(["--name", &self.name]).args(more);
        command
    }

    pub(crate) fn xtask(&self, action: &[&str], more: &[&str]) -> Output {
        let mut command = self.command(action, more);
        self.machine.run(move || command.output()).expect("starting xtask")
    }

    /// What an action printed, which must succeed.
    pub(crate) fn done(&self, action: &[&str], more: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.xtask(action, more);
        let [stdout, stderr] =
            [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(status.success(), "{action:?} {more:?}: {status}\n{stdout}\n{stderr}");
        stdout
    }

    /// Starts `up` and returns its process once it has printed a line that starts so.
    pub(crate) fn up_until(&self, line: &str) -> u32 {
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
    pub(crate) fn network(&self) -> String {
        self.machine.sh("ip -o link; ip -o addr; ip route; nft list ruleset")
    }

    /// What of this cluster is on the machine: processes, mounts, control groups and files.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
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

    /// The processes of a program that are in this cluster.
    pub(crate) fn processes(&self, program: &str) -> Vec<Pid> {
        let group = format!("/pd-router-clusters/{}/", self.name);
        let of_program = |process: &Path| {
            let words = fs::read(process.join("cmdline")).unwrap_or_default();
            let first = words.split(|&byte| byte == 0).next().unwrap_or_default();
            let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            Path::new(&*String::from_utf8_lossy(first)).ends_with(program)
                && groups.contains(&group)
        };
        let all = fs::read_dir("/proc").expect("processes").filter_map(Result::ok);
        let found = all.map(|process| process.path()).filter(|process| of_program(process));
        let id = |process: PathBuf| process.file_name()?.to_str()?.parse().ok().map(Pid::from_raw);
        found.filter_map(id).collect()
    }

    pub(crate) fn wait_until_gone(&self) {
        let deadline = Instant::now() + GONE;
        while !self.traces().is_empty() {
            assert!(Instant::now() < deadline, "still there: {:#?}", self.traces());
            std::thread::yield_now();
        }
    }
}

pub(crate) fn clusters() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().expect("a home").join(".cache");
    cache.unwrap_or_else(home).join("pd-router/clusters")
}
