//! What the process uses, as the kernel counts it.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};

static STARTED: OnceLock<SystemTime> = OnceLock::new();

/// Notes the start of the process.
pub fn started() {
    STARTED.get_or_init(SystemTime::now);
}

/// Name, type, help text and value; `None` where it cannot be read.
pub(super) fn usage() -> [(&'static str, MetricType, &'static str, Option<f64>); 5] {
    [
        ("process_cpu_seconds", Counter, "CPU time of the process, user and system", cpu_seconds()),
        (
            "process_resident_memory_bytes",
            Gauge,
            "Memory of the process that is in RAM",
            resident_bytes(),
        ),
        ("process_open_fds", Gauge, "Open file descriptors", open_descriptors()),
        ("process_max_fds", Gauge, "Limit of open file descriptors", max_descriptors()),
        (
            "process_start_time_seconds",
            Gauge,
            "Start of the process, in seconds since 1970",
            start_seconds(),
        ),
    ]
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn resident_bytes() -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page_size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page_size as f64)
}

fn open_descriptors() -> Option<f64> {
    // One of them is that of this directory.
    let all = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(all.saturating_sub(1) as f64)
}

fn max_descriptors() -> Option<f64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(soft as f64)
}

fn start_seconds() -> Option<f64> {
    let started = STARTED.get_or_init(SystemTime::now);
    Some(started.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}
