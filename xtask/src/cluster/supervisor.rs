//! The process that holds a cluster: it makes the namespaces of every machine, and removes all of it
//! on a signal, when `up` ends early, or when a machine ends.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use super::plan::{Addresses, CONTROL_PLANE, Machine, Plan};
use super::{cgroups, state};
use crate::shell;

/// What `up` writes to a supervisor.
pub(super) const START: &str = "start";
pub(super) const DETACH: &str = "detach";
/// Makes a machine of fresh namespaces.
const MACHINE: &str = include_str!("machine.sh");
/// Joins the control groups that are named before `--`, and becomes the command behind it.
const JOIN: &str =
    r#"while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@""#;
/// Time within which a new cluster gets the lock that somebody who asks for its state has.
const CLAIMED: Duration = Duration::from_secs(2);

enum Event {
    /// A line of `up`.
    Said(String),
    /// `up` has ended.
    Left,
    /// A signal asks to end.
    Signal,
    /// A machine has ended.
    Ended(String),
}

/// A machine that runs, as long as its standard input is open.
struct Running {
    process: Child,
    /// Its process 1 ends when this closes.
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

/// Holds a cluster until it is to end.
///
/// # Errors
/// It runs already, cannot be started, or cannot be removed.
pub(super) fn run(name: &str) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // Before the first thread: all inherit it.
    signals.thread_block().context("blocking signals")?;
    let Some(_running) = claim(name)? else { bail!("the cluster {name} runs already") };
    let (addresses, _number) = state::claim_addresses()?;
    let folder = state::folder(name)?;
    say(&addresses.number.to_string());
    let (events, inbox) = channel();
    watch_signals(signals, events.clone());
    watch_input(events.clone());
    let mut machines = Vec::new();
    let result = hold(name, &folder, &mut machines, (&events, &inbox));
    for Running { mut process, input, .. } in machines {
        drop(input);
        _ = process.wait();
    }
    let removed = state::clean(name);
    result.and(removed)
}

/// Says a line to `up`. If `up` has ended, its end of the other pipe says so.
fn say(line: &str) {
    _ = writeln!(std::io::stdout(), "{line}");
}

fn claim(name: &str) -> Result<Option<state::Running>> {
    let deadline = Instant::now() + CLAIMED;
    loop {
        let claimed = state::claim(name)?;
        if claimed.is_some() || Instant::now() > deadline {
            return Ok(claimed);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn watch_signals(signals: SigSet, events: Sender<Event>) {
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            _ = events.send(Event::Signal);
        }
    });
}

fn watch_input(events: Sender<Event>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            _ = events.send(Event::Said(line));
        }
        _ = events.send(Event::Left);
    });
}

/// Starts the machines when `up` says so, and returns when the cluster is to end.
fn hold(
    name: &str,
    folder: &Path,
    machines: &mut Vec<Running>,
    (events, inbox): (&Sender<Event>, &Receiver<Event>),
) -> Result<()> {
    let mut is_detached = false;
    while let Ok(event) = inbox.recv() {
        match event {
            Event::Said(line) if line == START => {
                start(name, folder, machines)?;
                for machine in &mut *machines {
                    watch_machine(machine.process.id(), events.clone());
                }
                say("started");
            }
            Event::Said(line) if line == DETACH => is_detached = true,
            Event::Said(line) => bail!("`up` said `{line}`"),
            Event::Left if is_detached => {}
            Event::Left => bail!("`up` has ended early"),
            Event::Signal => return Ok(()),
            Event::Ended(process) => bail!("process {process} of a machine has ended"),
        }
    }
    Ok(())
}

/// Waits in a thread until a process has ended; the process is left for its owner to collect.
fn watch_machine(id: u32, events: Sender<Event>) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let pid = nix::unistd::Pid::from_raw(id.cast_signed());
    std::thread::spawn(move || {
        _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        _ = events.send(Event::Ended(id.to_string()));
    });
}

/// Makes all machines, connects them, and starts their services.
fn start(name: &str, folder: &Path, machines: &mut Vec<Running>) -> Result<()> {
    let plan = Plan::read(folder)?;
    for machine in &plan.machines {
        let running = namespaces(name, folder, machine)
            .with_context(|| format!("the namespaces of {}", machine.name))?;
        machines.push(running);
    }
    connect(plan.addresses, machines).context("connecting the machines")?;
    for (machine, running) in plan.machines.iter().zip(machines) {
        writeln!(running.input, "go")?;
        expect_line(running, "started").with_context(|| {
            let logs = state::logs(folder, &machine.name).join("machine.log");
            format!("starting {}: {}", machine.name, log_end(&logs))
        })?;
        let ids = folder.join("machines").join(&machine.name);
        std::fs::write(ids.join("pid"), first_process(running.process.id())?.to_string())?;
    }
    Ok(())
}

/// Makes the namespaces of a machine, in which a shell waits for its network.
fn namespaces(cluster: &str, folder: &Path, machine: &Machine) -> Result<Running> {
    let (cache, packages) = (crate::workspace::cache()?, super::programs::packages()?);
    let own = folder.join("machines").join(&machine.name);
    let logs = state::logs(folder, &machine.name);
    std::fs::create_dir_all(&own)?;
    std::fs::create_dir_all(&logs)?;
    let mut words: Vec<PathBuf> = ["-eu", "-c", JOIN, "join"].map(PathBuf::from).into();
    let groups = cgroups::create(cluster, &machine.name)?;
    words.extend_from_slice(&groups);
    let unshare = ["--", "unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup"];
    words.extend(unshare.map(PathBuf::from));
    words.extend(
        ["--fork", "--kill-child", "sh", "-eu", "-c", MACHINE, "machine"].map(PathBuf::from),
    );
    words.extend([own, cache, packages, PathBuf::from(&machine.name)]);
    let init = std::env::current_exe().context("the path of this program")?;
    words.extend([init, "cluster".into(), "init".into(), folder.into()]);
    words.push(PathBuf::from(&machine.name));
    let mut process = Command::new("sh")
        .args(words)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/run")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(logs.join("machine.log"))?)
        .spawn()
        .context("starting a shell")?;
    let input = process.stdin.take().context("standard input is a pipe")?;
    let output = BufReader::new(process.stdout.take().context("standard output is a pipe")?);
    let mut running = Running { process, input, output };
    expect_line(&mut running, "namespaces").with_context(|| log_end(&logs.join("machine.log")))?;
    cgroups::move_down(&groups, running.process.id())?;
    Ok(running)
}

fn expect_line(running: &mut Running, expected: &str) -> Result<()> {
    let mut line = String::new();
    running.output.read_line(&mut line).context("reading from a machine")?;
    if line.trim_end() != expected {
        bail!("it ended before it said `{expected}`");
    }
    Ok(())
}

/// The last lines of a log.
pub(super) fn log_end(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("{}:\n{}", path.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
}

/// The process 1 of a machine, as this machine counts processes: the only child of `unshare`.
fn first_process(unshare: u32) -> Result<u32> {
    let path = format!("/proc/{unshare}/task/{unshare}/children");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.trim().parse().context("a machine without a process")
}

/// Joins all machines by a bridge in the control plane's network namespace, and gives them addresses
/// and routes to each other's pods.
fn connect(addresses: Addresses, machines: &[Running]) -> Result<()> {
    let (control_plane, nodes) = machines.split_first().context("a plan without machines")?;
    let control_ip = addresses.control_plane();
    let mut script = format!(
        "ip link add nodes type bridge
         ip addr add {control_ip}/24 dev nodes
         ip link set nodes up
         echo 1 > /proc/sys/net/ipv4/ip_forward\n"
    );
    let mut routes = Vec::new();
    for (node, running) in (1..).zip(nodes) {
        let pid = running.process.id();
        script += &format!(
            "ip link add node-{node} type veth peer name eth0 netns {pid}
             ip link set node-{node} master nodes up\n"
        );
        routes.push((
            node,
            format!("ip route add {} via {}\n", addresses.pods(node), addresses.node(node)),
        ));
    }
    in_network(control_plane, &script)?;
    for (node, running) in (1..).zip(nodes) {
        let mut script = format!(
            "ip addr add {}/24 dev eth0
             ip link set eth0 up
             ip route add default via {control_ip}
             echo 1 > /proc/sys/net/ipv4/ip_forward\n",
            addresses.node(node)
        );
        script.extend(routes.iter().filter(|(other, _)| *other != node).map(|(_, route)| &**route));
        in_network(running, &script)?;
    }
    let all: String = routes.into_iter().map(|(_, route)| route).collect();
    in_network(control_plane, &all).with_context(|| format!("routes of {CONTROL_PLANE}"))
}

fn in_network(machine: &Running, script: &str) -> Result<()> {
    let namespace = format!("--net=/proc/{}/ns/net", machine.process.id());
    let mut enter = shell::command("nsenter");
    shell::output(enter.arg(namespace).args(["sh", "-ec", script])).map(|_| ())
}
