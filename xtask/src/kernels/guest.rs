//! One kernel under QEMU: it is started, its second serial line is read, and it is ended in time.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::debian::{Kernel, QEMU};
use crate::counts::Counts;
use crate::shell;

/// Quiet but for what is wrong; without hardware's help, mitigations cost and protect nothing.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=4 mitigations=off audit=0 nokaslr";
/// Lines of the kernel's log that are shown of a guest that did not end well.
const LAST_LINES: usize = 40;

/// A running guest, which ends with this value.
#[derive(Debug)]
pub(super) struct Guest {
    qemu: Child,
    version: String,
    initrd: PathBuf,
    /// The kernel's log.
    console: PathBuf,
    /// The tests' output.
    transcript: PathBuf,
}

/// Result of a guest.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) counts: Counts,
    /// Findings about the kernel, in the order in which the tests reported them.
    pub(super) findings: Vec<(String, String)>,
    /// Why it did not end well.
    pub(super) failure: Option<String>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.qemu.kill();
        _ = self.qemu.wait();
        _ = std::fs::remove_file(&self.initrd);
    }
}

impl Guest {
    /// # Errors
    /// QEMU does not start.
    pub(super) fn start(kernel: &Kernel, initrd: &[u8], logs: &Path) -> Result<Guest> {
        let own =
            |ending: &str| logs.join(format!("{}-{}.{ending}", kernel.version, std::process::id()));
        let (image, console, transcript) = (own("cpio"), own("console.log"), own("tests.log"));
        std::fs::write(&image, initrd).with_context(|| format!("writing {}", image.display()))?;
        let mut command = held(QEMU);
        command
            // One thread for both CPUs: with one each, what a CPU patches into the kernel's code
            // reaches the other too late (an int3 of a jump label, and a panic).
            .args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "2048"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-append", COMMAND_LINE, "-kernel"])
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&image)
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let qemu = command.spawn().with_context(|| format!("starting {QEMU}"))?;
        let version = kernel.version.clone();
        Ok(Guest { qemu, version, initrd: image, console, transcript })
    }

    /// Reads the guest's output until it ends, and prints it.
    ///
    /// # Errors
    /// Its output cannot be kept.
    pub(super) fn report(mut self, limit: Duration) -> Result<Report> {
        let lines = lines_of(self.qemu.stdout.take().context("QEMU's output is a pipe")?);
        let mut transcript = File::create(&self.transcript)
            .with_context(|| format!("making {}", self.transcript.display()))?;
        let end = Instant::now() + limit;
        let mut report = Report::default();
        let mut ended = None;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    use std::io::Write;
                    writeln!(transcript, "{line}").context("keeping the guest's output")?;
                    let read = read_line(&line, &mut report);
                    if let Some(shown) = read.shown {
                        println!("{:<16} {shown}", self.version);
                    }
                    ended = ended.or(read.ended);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    report.failure = Some(format!("not done after {} s", limit.as_secs()));
                    break;
                }
            }
        }
        if ended.is_none() && report.failure.is_none() {
            report.failure = Some("it ended before its tests".to_owned());
        }
        if ended.is_some_and(|code| code != 0) && report.counts.failed == 0 {
            report.failure = Some("its tests exited with an error".to_owned());
        }
        if let Some(failure) = &report.failure {
            report.counts += Counts::FAILURE;
            println!("Linux {}: {failure}; end of the kernel's log:", self.version);
            last_lines(&self.console).iter().for_each(|line| println!("    {line}"));
        }
        if report.counts.failed > 0 {
            println!("    whole logs: {}", self.console.display());
            println!("                {}", self.transcript.display());
        } else {
            _ = std::fs::remove_file(&self.console);
            _ = std::fs::remove_file(&self.transcript);
        }
        Ok(report)
    }
}

/// A command that is killed when this process ends, where setpriv is installed.
fn held(program: &str) -> Command {
    if shell::which("setpriv").is_none() {
        return shell::command(program);
    }
    let mut command = shell::command("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (lines, inbox) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if lines.send(text).is_err() {
                return;
            }
        }
    });
    inbox
}

/// A line that is neither a count nor a finding.
#[derive(Debug, Default, PartialEq, Eq)]
struct LineRead<'a> {
    shown: Option<&'a str>,
    /// The tests' exit code.
    ended: Option<i32>,
}

/// Adds a line to the report. Lines that begin with `@ ` are of the tests' own protocol.
fn read_line<'a>(line: &'a str, report: &mut Report) -> LineRead<'a> {
    if let Some(counts) = Counts::of_line(line) {
        report.counts += counts;
    }
    let Some(message) = line.strip_prefix("@ ") else {
        let shown = Some(line).filter(|line| !line.is_empty());
        return LineRead { shown, ended: None };
    };
    if let Some(code) = message.strip_prefix("ended with ") {
        return LineRead { shown: None, ended: Some(code.parse().unwrap_or(-1)) };
    }
    match message.split_once(" = ") {
        Some((what, found)) => {
            report.findings.push((what.to_owned(), found.to_owned()));
            LineRead::default()
        }
        None => LineRead { shown: Some(message), ended: None },
    }
}

fn last_lines(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_findings_and_the_exit_code_are_read() {
        let mut report = Report::default();
        for line in [
            "test chain::a ... ok",
            "@ tc attach = clsact",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out",
        ] {
            assert_eq!(read_line(line, &mut report).ended, None);
        }
        assert_eq!(read_line("", &mut report), LineRead::default());
        assert_eq!(read_line("@ ended with 0", &mut report).ended, Some(0));
        assert_eq!(report.counts, Counts { passed: 3, failed: 0 });
        assert_eq!(report.findings, [("tc attach".to_owned(), "clsact".to_owned())]);
    }

    /// A guest played by a shell, with its files in a folder for the test to remove.
    fn played(name: &str, script: &str) -> Guest {
        let own = |ending: &str| folder(name).join(ending);
        std::fs::create_dir_all(folder(name)).unwrap();
        let mut shell = shell::command("sh");
        shell.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let qemu = shell.spawn().unwrap();
        let (initrd, console, transcript) = (own("cpio"), own("console"), own("tests"));
        Guest { qemu, version: name.to_owned(), initrd, console, transcript }
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("guest-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_guest_that_reports_its_exit_code_passes() {
        let script = "echo '@ tc = clsact'; echo 'test result: ok. 2 passed; 0 failed'
            echo '@ ended with 0'";
        let report = played("good", script).report(Duration::from_secs(60)).unwrap();
        std::fs::remove_dir_all(folder("good")).unwrap();
        assert_eq!((report.counts, report.failure), (Counts { passed: 2, failed: 0 }, None));
    }

    #[test]
    fn a_guest_that_ends_before_its_tests_fails() {
        let report = played("panics", "echo '@ tc = tcx'").report(Duration::from_secs(60)).unwrap();
        std::fs::remove_dir_all(folder("panics")).unwrap();
        assert_eq!(report.counts, Counts::FAILURE);
        assert_eq!(report.failure.as_deref(), Some("it ended before its tests"));
    }

    #[test]
    fn a_guest_that_hangs_is_killed_at_its_limit() {
        let guest = played("hangs", "echo '@ tc = tcx'; exec sleep 600");
        let process = nix::unistd::Pid::from_raw(guest.qemu.id().cast_signed());
        let report = guest.report(Duration::from_millis(300)).unwrap();
        std::fs::remove_dir_all(folder("hangs")).unwrap();
        assert_eq!(report.failure.as_deref(), Some("not done after 0 s"));
        // Ended and waited for: there is no such process any more.
        assert!(nix::sys::signal::kill(process, None).is_err());
    }
}
