//! pd-router's agent on the fleet's node, what it counted and what that cost.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::engines::Engines;
use crate::manifests;
use crate::process::Process;
use crate::site::Site;

const PORT: u16 = 9911;
/// Where Linux has its control groups.
const CGROUP: &str = "/sys/fs/cgroup";
/// Time for the agent to load its programs.
const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Not a secret: the agent is reached from this fleet alone.
const TOKEN: &str = "fleet-bench";

/// How the agent runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Agent")]
pub(crate) struct AgentFlags {
    /// File with the object of the eBPF programs, for a pd-router that does not carry it.
    #[arg(long, value_name = "FILE", env = "PD_ROUTER_EBPF_OBJECT")]
    ebpf_object: Option<PathBuf>,
    /// Start the agent before the engines. Without this flag it starts when they are ready, as on a
    /// cluster that gets agents later.
    #[arg(long)]
    pub(crate) agent_first: bool,
    /// Further flags of `pd-router agent`.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    agent_flags: String,
}

/// A running agent. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) token_file: PathBuf,
    process: Process,
    started: Instant,
    cpu: Duration,
}

impl Agent {
    /// Starts the agent; it is not ready yet.
    ///
    /// # Errors
    /// There is no node, or the node cannot be prepared.
    pub(crate) fn start(
        flags: &AgentFlags,
        pd_router: &Path,
        site: &Site,
        engines: &Engines,
    ) -> Result<Agent> {
        let ip = site.node_ip().context("an agent needs network namespaces, those need root")?;
        let address = SocketAddr::new(ip, PORT);
        let folder = site.logs.join("agent");
        let manifests = manifests::write(&folder, engines, 8080)?;
        let token_file = folder.join("token");
        std::fs::write(&token_file, TOKEN).context("writing the agent's token")?;
        let mut prepare = Command::new(pd_router);
        prepare.args(["agent", "--prepare-node", "--cgroup", CGROUP]);
        let mut prepare = site.start_on_node("agent-prepare", prepare)?;
        prepare.succeeds(START)?;
        let mut command = Command::new(pd_router);
        command.args(["agent", "--listen", &address.to_string(), "--manifests"]).arg(manifests);
        command.arg("--token-file").arg(&token_file);
        if let Some(object) = &flags.ebpf_object {
            command.arg("--ebpf-object").arg(object);
        }
        command.args(flags.agent_flags.split_whitespace());
        let process = site.start_on_node("agent", command)?;
        Ok(Agent { address, token_file, process, started: Instant::now(), cpu: Duration::ZERO })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ended, or is not ready in time: with the end of its log.
    pub(crate) async fn until_ready(&mut self, client: &Client) -> Result<()> {
        let url = format!("http://{}/readyz", self.address);
        while let Err(error) = client.get(&url, ANSWER).await {
            self.process.lives()?;
            if self.started.elapsed() > START {
                bail!("the agent is not ready: {error:#}; {}", self.process.tail());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        (self.started, self.cpu) = (Instant::now(), self.process.cpu());
        Ok(())
    }

    /// # Errors
    /// It has ended.
    pub(crate) fn lives(&mut self) -> Result<()> {
        self.process.lives()
    }

    /// Writes what it counted and what that cost to `agent.json`, beside the engines' own count of KV.
    ///
    /// # Errors
    /// It does not answer, or the file cannot be written.
    pub(crate) async fn report(&self, folder: &Path, engines_kv_bytes: Option<f64>) -> Result<()> {
        let client = Client::new(Some(TOKEN));
        let loads = client.get(&format!("http://{}/v1/loads", self.address), ANSWER).await?;
        let loads: Value = serde_json::from_str(&loads).context("the agent's loads")?;
        let sum = |list: &str, field: &str| -> f64 {
            let items = loads[list].as_array().into_iter().flatten();
            items.filter_map(|item| item[field].as_f64()).sum()
        };
        let (cpu, took) = (self.process.cpu() - self.cpu, self.started.elapsed());
        let report = json!({
            "cpu_s": cpu.as_secs_f64(), "seconds": took.as_secs_f64(),
            "peak_mib": self.process.peak_mib(),
            "pods_kv_bytes": sum("pods", "rx_kv_payload"), "pairs_kv_bytes": sum("kv", "bytes"),
            "engines_kv_bytes": engines_kv_bytes, "loads": loads,
        });
        let file = folder.join("agent.json");
        std::fs::write(&file, report.to_string())
            .with_context(|| format!("writing {}", file.display()))?;
        println!(
            "agent: {:.1} CPU-s in {:.0} s, {} MiB; bytes of KV: {:.0} received by pods, {:.0} of known \
             pairs, {} sent as the engines count; missing: {}",
            cpu.as_secs_f64(),
            took.as_secs_f64(),
            self.process.peak_mib(),
            sum("pods", "rx_kv_payload"),
            sum("kv", "bytes"),
            engines_kv_bytes.map_or("-".to_owned(), |bytes| format!("{bytes:.0}")),
            loads["missing"],
        );
        Ok(())
    }
}
