//! The kernel's counters of the demo: an agent on the demo's node. It needs root and the eBPF programs'
//! object.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netns::Namespace;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::START;
use super::process::Process;
use super::site::{Site, inside};
use crate::{ebpf, shell};

const AGENT: &str = "127.0.0.1:9911";
/// Pins of its own, so that an agent of this machine is not disturbed.
const PINS: &str = "/sys/fs/bpf/pd-router-demo";
/// Interval at which requests in flight are read.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The object of the eBPF programs, or the reason why it cannot run here, in one line.
pub(super) fn object() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("it needs root".to_owned());
    }
    ebpf::build().map_err(|error| format!("{error:#}"))
}

/// An agent on the demo's node. Dropping it removes everything that it made.
#[derive(Debug)]
pub(super) struct Counting {
    _process: Process,
    /// Commands that query the agent, up to the URL, and that remove everything that it made.
    ask: Vec<String>,
    cleanup: Vec<String>,
    /// The most requests that were seen in flight at once, by pod.
    peaks: BTreeMap<String, u64>,
}

impl Counting {
    pub(super) async fn start(
        binary: &Path,
        object: &Path,
        site: &Site,
        node: &Namespace,
    ) -> Result<Counting> {
        let mut words = inside(node, binary);
        words.extend(["agent", "--pin-dir", PINS].map(str::to_owned));
        let mut cleanup = words.clone();
        cleanup.push("--cleanup".to_owned());
        words.extend(["--uplink", "up0", "--listen", AGENT, "--manifests"].map(str::to_owned));
        words.push(site.manifests.display().to_string());
        words.extend(["--ebpf-object".to_owned(), object.display().to_string()]);
        let process = Process::start("agent", Path::new(&words[0]), &words[1..])?;
        let mut ask = inside(node, Path::new("curl"));
        ask.extend(["--silent", "--fail", "--noproxy", "*"].map(str::to_owned));
        let counting = Counting { _process: process, ask, cleanup, peaks: BTreeMap::new() };
        let start = Instant::now();
        while let Err(error) = counting.get("/readyz").await {
            if start.elapsed() > START {
                bail!("the agent did not get ready: {error:#}\n{}", counting._process.tail());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(counting)
    }

    async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let url = format!("http://{AGENT}{path}");
        let mut command = Command::new(&self.ask[0]);
        command.args(&self.ask[1..]).arg(&url).kill_on_drop(true);
        let answer = command.output().await;
        let answer = answer.context("starting curl (cargo xtask setup installs it)")?;
        if !answer.status.success() {
            bail!("the agent does not answer {url}");
        }
        Ok(answer.stdout)
    }

    async fn loads(&self) -> Result<Value> {
        serde_json::from_slice(&self.get("/v1/loads").await?).context("the agent's answer")
    }

    /// Records the peak of requests in flight of each pod, until the future is dropped.
    pub(super) async fn watch(&mut self) -> Result<()> {
        loop {
            let loads = self.loads().await?;
            for pod in loads["pods"].as_array().into_iter().flatten() {
                let name = pod["pod"].as_str().unwrap_or_default().to_owned();
                let peak = self.peaks.entry(name).or_default();
                *peak = pod["in_flight"].as_u64().unwrap_or_default().max(*peak);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Prints what was counted of the requests so far.
    pub(super) async fn show(&self) -> Result<()> {
        // Pairs are read every 100 ms: what has just ended is counted then.
        sleep(Duration::from_millis(300)).await;
        println!("The kernel's counters, which include the gateway's probes:");
        lines(&self.loads().await?, &self.peaks).iter().for_each(|line| println!("  {line}"));
        let ask = &self.ask[..self.ask.len() - 3];
        println!("  {} http://{AGENT}/v1/loads     all of it\n", ask.join(" "));
        Ok(())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut cleanup = shell::command(&self.cleanup[0]);
        if let Err(error) = shell::output(cleanup.args(&self.cleanup[1..])) {
            println!("cannot remove the agent's programs: {error:#}");
        }
    }
}

/// One line for each pod and one for each pair.
fn lines(loads: &Value, peaks: &BTreeMap<String, u64>) -> Vec<String> {
    let list = |name: &str| loads[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let milliseconds =
        |value: &Value| value.as_f64().map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
    let pods = list("pods").into_iter().map(|pod| {
        let name = text(&pod["pod"]);
        format!(
            "{name}: {} requests, {} in flight (at most {}), TTFT {}, between tokens {}",
            pod["started"],
            pod["in_flight"],
            peaks.get(&name).copied().unwrap_or_default(),
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
            "a/p: 2 requests, 0 in flight (at most 1), TTFT 1.2 ms, between tokens -",
            "a/p -> a/d: 7 bytes of KV",
        ];
        assert_eq!(lines(&loads, &[("a/p".to_owned(), 1)].into()), wanted);
    }
}
