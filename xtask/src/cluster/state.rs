//! The files of a cluster in the user's cache folder, and the locks that say which cluster runs.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroups;
use super::plan::Addresses;
use crate::workspace;

/// Time that a supervisor may take to remove its cluster.
const REMOVED: Duration = Duration::from_secs(60);

/// The folder of a cluster.
///
/// # Errors
/// There is no cache folder.
pub(super) fn folder(name: &str) -> Result<PathBuf> {
    Ok(clusters()?.join(name))
}

fn clusters() -> Result<PathBuf> {
    let folder = workspace::cache()?.join("clusters");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Where the services of a machine write.
pub(super) fn logs(folder: &Path, machine: &str) -> PathBuf {
    folder.join("logs").join(machine)
}

/// Names of clusters that have a folder, running or not.
pub(super) fn names() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(clusters()?) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The lock that a supervisor holds; its file has the supervisor's process id.
#[derive(Debug)]
pub(super) struct Running(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Takes the lock of a cluster, or returns `None` where a supervisor has it.
///
/// # Errors
/// The lock's file cannot be made.
pub(super) fn claim(name: &str) -> Result<Option<Running>> {
    let Some(mut lock) = try_lock(&format!("{name}.lock"))? else { return Ok(None) };
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id()).context("writing the supervisor's id")?;
    Ok(Some(Running(lock)))
}

/// Waits until no other `up` starts a cluster of that name; it does while the lock is held.
///
/// # Errors
/// The lock's file cannot be made.
pub(super) fn turn(name: &str) -> Result<Flock<File>> {
    lock(&format!("{name}.up.lock"), FlockArg::LockExclusive)?.context("waiting for another `up`")
}

/// A number that no other running cluster of this user has, and the lock on it.
///
/// # Errors
/// All are taken.
pub(super) fn claim_addresses() -> Result<(Addresses, Flock<File>)> {
    for number in 1..=Addresses::MAX {
        if let Some(lock) = try_lock(&format!("addresses-{number}.lock"))? {
            return Ok((Addresses { number }, lock));
        }
    }
    bail!("{} clusters run already", Addresses::MAX)
}

fn try_lock(file: &str) -> Result<Option<Flock<File>>> {
    lock(file, FlockArg::LockExclusiveNonblock)
}

/// Locks a file, or returns `None` where it is locked and the lock is not to be waited for.
fn lock(file: &str, how: FlockArg) -> Result<Option<Flock<File>>> {
    let path = clusters()?.join(file);
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let Ok(lock) = Flock::lock(file, how) else { return Ok(None) };
        // The last holder may have removed the file, and a lock on that protects nothing.
        let number = lock.metadata()?.ino();
        if fs::metadata(&path).is_ok_and(|now| now.ino() == number) {
            return Ok(Some(lock));
        }
    }
}

/// Removes the logs and locks of a cluster that does not run.
///
/// # Errors
/// It runs or is being started, or a file cannot be removed.
pub(super) fn forget(name: &str) -> Result<()> {
    let locks = [format!("{name}.up.lock"), format!("{name}.lock")];
    let [Some(_turn), Some(_running)] = [try_lock(&locks[0])?, try_lock(&locks[1])?] else {
        bail!("the cluster {name} runs or is being started");
    };
    _ = fs::remove_dir_all(folder(name)?);
    for lock in locks {
        fs::remove_file(clusters()?.join(&lock)).with_context(|| format!("removing {lock}"))?;
    }
    Ok(())
}

/// The process id of the supervisor of a running cluster.
///
/// # Errors
/// The lock cannot be read.
pub(super) fn supervisor(name: &str) -> Result<Option<Pid>> {
    let file = format!("{name}.lock");
    let path = clusters()?.join(&file);
    // To try the lock makes its file, which a name that no cluster has had is not to leave.
    if !path.exists() || try_lock(&file)?.is_some() {
        return Ok(None);
    }
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    let pid = text.trim().parse().context("the lock of a cluster that starts just now")?;
    Ok(Some(Pid::from_raw(pid)))
}

/// Ends a cluster and removes what it had: its supervisor removes it, or this where that was killed.
/// Returns whether it ran.
///
/// # Errors
/// It does not end within a minute.
pub(super) fn remove(name: &str) -> Result<bool> {
    let running = supervisor(name)?;
    if let Some(pid) = running {
        _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + REMOVED;
        while supervisor(name)?.is_some() {
            if Instant::now() > deadline {
                bail!("the supervisor of {name}, process {pid}, does not end");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    clean(name)?;
    Ok(running.is_some())
}

/// Removes the control groups and files of a cluster without processes, all but its logs.
///
/// # Errors
/// Something cannot be removed.
pub(super) fn clean(name: &str) -> Result<()> {
    cgroups::remove(name)?;
    let folder = folder(name)?;
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let removed = match entry.file_type()?.is_dir() {
            _ if entry.file_name() == "logs" => Ok(()),
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.with_context(|| format!("removing {}", entry.path().display()))?;
    }
    Ok(())
}
