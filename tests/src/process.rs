//! CPU time and memory of a process, from `/proc`.

use std::time::Duration;

/// User and system time that a process has used.
///
/// # Panics
/// It has ended.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // After the name, which may hold spaces: proc(5), fields 14 and 15, in hundredths.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a count of ticks");
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// Its resident memory in bytes.
///
/// # Panics
/// It has ended.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// Its peak resident memory, in bytes.
///
/// # Panics
/// It has ended.
#[must_use]
pub fn peak_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a process has resident memory") * 1024
}
