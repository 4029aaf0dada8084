//! The kernel's view of the demo: an agent on loopback, where root and the kernel half are there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::process::Command;

use super::process::Process;
use super::{EXAMPLE, START};
use crate::{ebpf, shell};

const AGENT: &str = "127.0.0.1:9911";
/// Pins of its own, so that an agent of this machine is not disturbed.
const PINS: &str = "/sys/fs/bpf/pd-router-demo";

/// The kernel half's object, or why there is none, in one line.
pub(super) fn object() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("it needs root".to_owned());
    }
    ebpf::build().map_err(|error| format!("{error:#}"))
}

/// An agent that counts on loopback until dropped.
#[derive(Debug)]
pub(super) struct Counting {
    process: Process,
    binary: PathBuf,
}

impl Counting {
    pub(super) async fn start(binary: &Path, object: &Path) -> Result<Counting> {
        // No uplink: nothing of this machine's own traffic is the demo's business.
        let words = ["agent", "--manifests", EXAMPLE, "--attach", "lo", "--uplink", "none"];
        let words = words.into_iter().chain(["--listen", AGENT, "--pin-dir", PINS, "--object"]);
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        words.push(object.display().to_string());
        let process = Process::start("agent", binary, &words)?;
        let mut counting = Counting { process, binary: binary.to_owned() };
        counting.process.answers(AGENT.parse()?, "/readyz", START).await?;
        Ok(counting)
    }

    /// Prints what was counted of the requests so far.
    pub(super) async fn show(&self) -> Result<()> {
        // Pairs are read every 100 ms: what has just ended is counted then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let url = format!("http://{AGENT}/v1/loads");
        let answer = Command::new("curl").args(["-s", &url]).output().await;
        let answer = answer.context("starting curl (cargo xtask setup installs it)")?;
        let loads: Value = serde_json::from_slice(&answer.stdout).context("the agent's answer")?;
        println!("What the kernel counted, the gateway's probes among it:");
        lines(&loads).iter().for_each(|line| println!("  {line}"));
        println!("  curl -s {url}     all of it\n");
        Ok(())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut cleanup = shell::command(&self.binary);
        if let Err(error) = shell::output(cleanup.args(["agent", "--cleanup", "--pin-dir", PINS])) {
            println!("the agent's programs stay attached: {error:#}");
        }
    }
}

/// A line a pod and a line a pair.
fn lines(loads: &Value) -> Vec<String> {
    let list = |name: &str| loads[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let milliseconds =
        |value: &Value| value.as_f64().map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
    let pods = list("pods").into_iter().map(|pod| {
        format!(
            "{}: {} requests, {} in flight, TTFT {}, between tokens {}",
            text(&pod["pod"]),
            pod["started"],
            pod["in_flight"],
            milliseconds(&pod["ttft"]["mean_ms"]),
            milliseconds(&pod["itl"]["mean_ms"]),
        )
    });
    let kv = list("kv").into_iter().map(|kv| {
        format!("{} -> {}: {} bytes of KV", text(&kv["prefill"]), text(&kv["decode"]), kv["bytes"])
    });
    pods.chain(kv).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_and_a_pair_are_a_line_each() {
        let loads = serde_json::json!({
            "pods": [{"pod": "a/p", "started": 2, "in_flight": 0,
                      "ttft": {"mean_ms": 1.25}, "itl": {"mean_ms": null}}],
            "kv": [{"prefill": "a/p", "decode": "a/d", "bytes": 7}],
        });
        let wanted = [
            "a/p: 2 requests, 0 in flight, TTFT 1.2 ms, between tokens -",
            "a/p -> a/d: 7 bytes of KV",
        ];
        assert_eq!(lines(&loads), wanted);
    }
}
