//! Process 1 of a machine: starts its services, starts those again that end, collects orphans, and
//! ends with its supervisor, which ends everything in the machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::plan::{Plan, Service};
use super::state;

/// A service that ends more often is left alone.
const MAX_STARTS: u32 = 20;
/// Pause before a service starts again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the services of a machine until its supervisor ends.
///
/// # Errors
/// The plan cannot be read, or a program is missing.
pub(super) fn run(folder: &Path, machine: &str) -> Result<()> {
    let plan = Plan::read(folder)?;
    let Some(machine) = plan.machines.iter().find(|one| one.name == machine) else {
        bail!("the plan has no machine {machine}");
    };
    let logs = state::logs(folder, &machine.name);
    let mut running: HashMap<Pid, (&Service, u32)> = HashMap::new();
    for service in &machine.services {
        running.insert(start(service, &logs)?, (service, 1));
    }
    println!("started");
    // The supervisor's end of this pipe closes however the supervisor ends.
    std::thread::spawn(|| {
        _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    loop {
        // No child at all is an error: every service has ended too often.
        let status = waitpid(None, None).context("every service has ended")?;
        let Some((service, starts)) = status.pid().and_then(|pid| running.remove(&pid)) else {
            continue;
        };
        eprintln!("{}: {} ended: {status:?}, start {starts}", machine.name, service.name);
        if starts < MAX_STARTS {
            std::thread::sleep(PAUSE);
            running.insert(start(service, &logs)?, (service, starts + 1));
        }
    }
}

fn start(service: &Service, logs: &Path) -> Result<Pid> {
    let log = logs.join(format!("{}.log", service.name));
    let log = File::options().create(true).append(true).open(&log).context("opening a log")?;
    let (program, words) = service.command.split_first().context("a service without a command")?;
    let child = Command::new(program)
        .args(words)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}
