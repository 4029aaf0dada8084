//! One run of wrk against one server, with what it cost the server.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::peers::Peer;
use crate::shell;

/// Requests that are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) connections: u32,
    /// Bytes of the prompt.
    pub(super) size: usize,
    pub(super) tokens: u32,
    pub(super) stream: bool,
}

/// Result of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// CPU seconds of the server for 10,000 requests.
    pub(super) cpu_s: f64,
    pub(super) errors: u64,
}

impl Load {
    /// Loads a server for some seconds.
    ///
    /// # Errors
    /// wrk fails, or the process has ended.
    pub(super) fn run(&self, server: &Peer, seconds: u32) -> Result<Run> {
        let before = cpu_seconds(server.pid())?;
        let printed = shell::output(
            shell::command("wrk")
                .env("SIZE", self.size.to_string())
                .env("STREAM", self.stream.to_string())
                .env("TOKENS", self.tokens.to_string())
                .env("ROOMS", server.client_names_room.to_string())
                .args(["--threads", "1", "--script", "tests/bench/post.lua", "--timeout", "30s"])
                .args(["--connections", &self.connections.to_string()])
                .args(["--duration", &format!("{seconds}s")])
                .arg(format!("http://{}", server.address)),
        )?;
        read(&printed, cpu_seconds(server.pid())? - before)
    }
}

fn read(printed: &str, cpu_s: f64) -> Result<Run> {
    let line = printed.lines().find_map(|line| line.strip_prefix("result "));
    let line = line.with_context(|| format!("wrk printed no result: {printed}"))?;
    let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let &[requests, duration_us, p50_us, p99_us, errors] = &numbers[..] else {
        bail!("wrk's result has {} numbers", numbers.len())
    };
    if requests == 0.0 {
        bail!("no request was answered");
    }
    let per_second = requests / (duration_us / 1e6);
    Ok(Run { per_second, p50_us, p99_us, cpu_s: cpu_s / requests * 1e4, errors: errors as u64 })
}

/// User and system time of a process, from /proc.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(Path::new(&path)).with_context(|| path.clone())?;
    // The name, in brackets, may hold spaces.
    let fields: Vec<&str> =
        stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("{path}: {stat}"))?;
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok((user + system) / 100.0)
}

/// The largest memory that a process has had, in MiB.
pub(super) fn peak_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_gives_rates_and_cpu_per_request() {
        let run = read("noise\nresult 20000 4000000 150.0 900.5 3\n", 2.0).unwrap();
        assert_eq!((run.per_second, run.p99_us, run.errors), (5000.0, 900.5, 3));
        assert_eq!(run.cpu_s, 1.0);
        assert!(read("result 0 4000000 0 0 9", 1.0).is_err());
        assert!(read("nothing", 1.0).is_err());
    }

    #[test]
    fn time_and_memory_of_a_process_are_read_from_proc() {
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(peak_mib(std::process::id()).unwrap() > 0);
    }
}
