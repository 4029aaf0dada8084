//! A program and everything that it starts: one process group, with a log, what it costs, and an end.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netns::Namespace;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Time to end after SIGTERM.
const END: Duration = Duration::from_secs(5);
/// Lines of a log that an error shows.
const SHOWN_LINES: usize = 25;

/// The groups that run, for [`kill_all`].
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A process group of ours. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program, in a namespace if one is given; `folder` gets its log.
    ///
    /// # Errors
    /// The log cannot be made, or the program does not start.
    pub(crate) fn start(
        name: &str,
        netns: Option<&Namespace>,
        folder: &Path,
        mut command: Command,
    ) -> Result<Process> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let spawned = match netns {
            Some(netns) => netns.run(move || command.spawn()),
            None => command.spawn(),
        };
        let child = spawned.with_context(|| format!("starting {name} ({program})"))?;
        groups().insert(child.id() as i32);
        Ok(Process { name: name.to_owned(), child, log })
    }

    /// # Errors
    /// It has ended: the message has the end of its log.
    pub(crate) fn lives(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}); {}", self.name, self.tail());
        }
        Ok(())
    }

    /// Waits until it has ended with status 0.
    ///
    /// # Errors
    /// It ended otherwise, or not within `limit`.
    pub(crate) fn succeeds(&mut self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended ({status}); {}", self.name, self.tail()),
                None if start.elapsed() > limit => {
                    bail!("{} does not end; {}", self.name, self.tail())
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        format!("{}:\n{}", self.log.display(), last.join("\n"))
    }

    /// CPU time of all its processes that run.
    pub(crate) fn cpu(&self) -> Duration {
        let ticks: u64 = stats(self.group()).iter().map(|stat| stat.ticks).sum();
        // USER_HZ is 100 on every Linux that Rust runs on.
        Duration::from_millis(ticks * 10)
    }

    /// The largest memory that one of its processes has had, in MiB.
    pub(crate) fn peak_mib(&self) -> u64 {
        let peaks = stats(self.group()).into_iter().filter_map(|stat| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", stat.pid)).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        peaks.max().unwrap_or_default() / 1024
    }

    fn group(&self) -> i32 {
        self.child.id() as i32
    }

    fn signal(&self, signal: Signal) {
        // An error means that it has ended.
        _ = killpg(Pid::from_raw(self.group()), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < END && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::SIGKILL);
        _ = self.child.wait();
        groups().remove(&self.group());
    }
}

/// Asks many to end at once: dropping one after the other then waits for the slowest alone.
pub(crate) fn terminate<'a>(processes: impl Iterator<Item = &'a Process>) {
    processes.for_each(|process| process.signal(Signal::SIGTERM));
}

/// Kills everything that runs, when this program is interrupted.
pub(crate) fn kill_all() {
    for group in groups().iter() {
        _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
    }
}

fn groups() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Stat {
    pid: u32,
    ticks: u64,
}

/// What /proc says of the processes of a group.
fn stats(group: i32) -> Vec<Stat> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let stats = pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold spaces: proc(5), fields 5, 14 and 15.
        let fields: Vec<&str> = stat.rsplit(") ").next()?.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let is_of_group = fields.get(2)?.parse::<i32>().ok()? == group;
        let ticks = number(11)? + number(12)?;
        is_of_group.then_some(Stat { pid, ticks })
    });
    stats.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (PathBuf, Process) {
        let folder = std::env::temp_dir().join(format!("fleet-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let name = format!("shell-{}", script.len());
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start(&name, None, &folder, command).unwrap();
        (folder.join(format!("{name}.log")), process)
    }

    #[test]
    fn children_count_and_end_with_it() {
        // The child spins; the shell waits for it.
        let (log, process) = shell("sh -c 'echo $$; while :; do :; done' & wait; true");
        let start = Instant::now();
        while process.cpu() < Duration::from_millis(50) {
            assert!(start.elapsed() < Duration::from_secs(60), "no CPU time is seen");
            std::thread::yield_now();
        }
        let child = std::fs::read_to_string(&log).unwrap();
        let is_there = || Path::new(&format!("/proc/{}/exe", child.trim())).exists();
        assert!(is_there());
        drop(process);
        // Its parent is gone, so init reaps it, which may take a moment; it has no program any more.
        let start = Instant::now();
        while is_there() {
            assert!(start.elapsed() < Duration::from_secs(60), "the child lives on");
            std::thread::yield_now();
        }
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn an_early_end_shows_the_log() {
        let (log, mut process) = shell("echo broken >&2; exit 3");
        let start = Instant::now();
        let error = loop {
            if let Err(error) = process.lives() {
                break error.to_string();
            }
            assert!(start.elapsed() < Duration::from_secs(60), "it does not end");
        };
        assert!(error.contains("exit status: 3") && error.contains("broken"), "{error}");
        std::fs::remove_file(log).unwrap();
    }
}
