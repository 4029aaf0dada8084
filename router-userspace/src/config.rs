//! Flags and environment, read once into [`Settings`] that are valid by construction.

mod exposure;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use router_core::fleet::AgentAddress;
use router_core::schedule::{Objective, Policy};

pub use self::exposure::ExposureFlags;
use crate::agent::flags::AgentFlags;
use crate::simulate::SimulateFlags;
use crate::token::Guard;

mod policy;

pub use policy::PolicyName;
use policy::targets_of;

/// Inference gateway for SGLang prefill/decode-disaggregated serving.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub telemetry: Telemetry,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the objects of a directory, or engines named by flags, as an HTTP gateway.
    Gateway(Box<GatewayFlags>),
    /// Counts in the kernel what this node's pods do on the network, and serves it.
    Agent(Box<AgentFlags>),
    /// Compares scheduling policies on a model of a fleet.
    Simulate(Box<SimulateFlags>),
    /// Prints the CustomResourceDefinitions that pd-router ships, for `kubectl apply -f -`.
    Crds(CrdFlags),
}

/// Flags of `pd-router crds`.
#[derive(Debug, Args)]
pub struct CrdFlags {
    /// Write one file a definition into this directory instead.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
pub struct Telemetry {
    /// What to log: a level, or directives such as `info,pd_router=debug`.
    #[arg(long, global = true, env = "PD_ROUTER_LOG", default_value = "info")]
    pub log: String,
    /// How a log line is written.
    #[arg(long, global = true, env = "PD_ROUTER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Flags of `pd-router gateway`.
#[derive(Debug, Args)]
pub struct GatewayFlags {
    #[command(flatten)]
    pub source: SourceFlags,

    /// Address that the listeners of every Gateway bind.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "IP")]
    pub listen_address: IpAddr,
    /// Where /livez, /readyz, /metrics and /fleet are served.
    #[arg(long, default_value = "127.0.0.1:9901", value_name = "IP:PORT")]
    pub admin_listen: SocketAddr,
    /// File with the token that /metrics and /fleet ask for. Without it they answer over loopback
    /// alone.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Answer /metrics and /fleet to everyone who reaches the admin port.
    #[arg(long, conflicts_with = "admin_token_file")]
    pub admin_without_token: bool,
    /// How the workers of a pair are chosen: round_robin, random, power_of_two, least_load,
    /// predicted.
    #[arg(long, default_value_t = PolicyName(Policy::default()))]
    pub policy: PolicyName,
    /// An agent beyond those that the source names: its address, and its node where pods tell theirs.
    /// May be repeated.
    #[arg(long, value_name = "IP:PORT[=NODE]", value_parser = agent)]
    pub agent: Vec<AgentAddress>,
    /// File with the token that agents ask for (their --token-file).
    #[arg(long, value_name = "FILE")]
    pub feedback_token_file: Option<PathBuf>,
    /// With --policy predicted: a pair whose predicted time to the first token is within this is
    /// taken before any that is not.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub slo_ttft: Option<Duration>,
    /// The same for the time between two tokens.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub slo_itl: Option<Duration>,
    /// Names the chosen pods in the answer's x-pd-router-prefill and x-pd-router-decode, and what
    /// was predicted of them in x-pd-router-choice.
    #[arg(long)]
    pub explain_headers: bool,
    /// File that holds the engines' API key, sent with /abort_request and probes.
    #[arg(long, value_name = "FILE")]
    pub engine_api_key_file: Option<PathBuf>,

    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub timeouts: TimeoutFlags,
}

/// Where the fleet comes from: a cluster, a directory, or engines by URL as sglang-router takes them.
#[derive(Clone, Debug, Args)]
pub struct SourceFlags {
    /// Serve the Gateways of a cluster: the one that this runs in, else that of $KUBECONFIG or
    /// ~/.kube/config.
    #[arg(long, conflicts_with_all = ["manifests", "pd_disaggregation", "prefill", "decode"])]
    pub kubernetes: bool,
    #[command(flatten)]
    pub exposure: ExposureFlags,
    /// Directory of YAML documents: Gateway, HTTPRoute, InferencePool, policies, Pods.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["pd_disaggregation", "prefill", "decode"])]
    pub manifests: Option<PathBuf>,
    /// Serve the engines named by --prefill and --decode, without any manifest.
    #[arg(long)]
    pub pd_disaggregation: bool,
    /// A prefill engine: its URL, and its bootstrap port (default 8998). May be repeated. Here
    /// as one list, in which a port follows its URL.
    #[arg(long, num_args = 1..=2, value_names = ["URL", "BOOTSTRAP_PORT"], action = clap::ArgAction::Append)]
    pub prefill: Vec<String>,
    /// A decode engine's URL. May be repeated.
    #[arg(long, value_name = "URL")]
    pub decode: Vec<String>,
    /// With --pd-disaggregation: the address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "IP")]
    pub host: IpAddr,
    /// With --pd-disaggregation: the port to listen on.
    #[arg(long, default_value_t = 30000)]
    pub port: u16,
}

impl SourceFlags {
    /// `--prefill`'s values, a port with the URL that it follows.
    pub fn prefills(&self) -> Vec<Vec<String>> {
        let mut groups: Vec<Vec<String>> = Vec::new();
        for value in &self.prefill {
            match groups.last_mut() {
                Some(group) if !value.contains("://") => group.push(value.clone()),
                _ => groups.push(vec![value.clone()]),
            }
        }
        groups
    }
}

/// How much the gateway takes. Everything has a limit.
#[derive(Clone, Debug, Args)]
pub struct LimitFlags {
    /// Largest request body in bytes; more is a 413.
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub max_body: usize,
    /// Bytes of all request bodies held at once; beyond that a request is a 503.
    #[arg(long, default_value_t = 4 << 30, value_name = "BYTES")]
    pub max_body_memory: usize,
    /// Largest request head in bytes; more is a 431.
    #[arg(long, default_value_t = 64 << 10, value_name = "BYTES")]
    pub max_head: usize,
    /// Client connections held at once; further ones wait to be accepted.
    #[arg(long, default_value_t = 32_768)]
    pub max_connections: usize,
    /// Requests on one worker at once, where the engine does not tell its own limit.
    #[arg(long, default_value_t = 1024)]
    pub max_requests_per_worker: u32,
    /// Largest answer in bytes that is not a stream; such an answer is read whole, so that an
    /// engine's death in the middle of it is no half answer for the client.
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub max_answer: usize,
    /// Requests of one pool that wait for room; one more is a 429.
    #[arg(long, default_value_t = 1024)]
    pub max_queued: usize,
    /// Pairs tried for one request, the first included.
    #[arg(long, default_value_t = 3)]
    pub max_attempts: u32,
    /// Engines that may die under one request; then it is a 502 and tried on no other, since it
    /// may be what kills them.
    #[arg(long, default_value_t = 1)]
    pub max_deaths: u32,
    /// Idle connections kept open to each worker.
    #[arg(long, default_value_t = 512)]
    pub max_idle_per_worker: usize,
}

/// How long the gateway waits. Durations are written `300s`, `5m`, `100ms`.
#[derive(Clone, Debug, Args)]
pub struct TimeoutFlags {
    /// For a request to find room; later it is a 503.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub queue_timeout: Duration,
    /// For a connection to an engine.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// For prefill's whole answer.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub prefill_timeout: Duration,
    /// For the first event of a streamed answer.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub first_event_timeout: Duration,
    /// Between two pieces of an answer.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub stream_idle_timeout: Duration,
    /// A worker that has answered no probe for this long, counted from the second lost one, has
    /// stopped: what waits for it goes to another pair or ends.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub silent_timeout: Duration,
    /// For a whole request, where neither HTTPRoute nor BackendTrafficPolicy says.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub request_timeout: Duration,
    /// For a client to send its request head; an idle connection is closed after it too.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub header_timeout: Duration,
    /// For a client to send the next piece of its request body.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub body_timeout: Duration,
    /// For a client to take what is sent to it: one that reads nothing for so long is let go, and its
    /// request aborted.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub send_timeout: Duration,
    /// An idle connection to an engine is closed after this; engines close theirs after 5 s
    /// (uvicorn's default), so a shorter time here avoids most races.
    #[arg(long, default_value = "4s", value_parser = duration)]
    pub pool_idle_timeout: Duration,
    /// Between two probes of a worker that is up.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub probe_interval: Duration,
    /// For a probe's answer.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub probe_timeout: Duration,
    /// Between two polls of what an engine tells of its own load.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub engine_load_interval: Duration,
    /// For running streams to finish after SIGTERM.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub drain_timeout: Duration,
}

/// Everything the gateway was told, checked.
#[derive(Debug)]
pub struct Settings {
    pub source: SourceFlags,
    pub listen_address: IpAddr,
    pub admin_listen: SocketAddr,
    pub admin_guard: Arc<Guard>,
    pub policy: Policy,
    pub agents: Vec<AgentAddress>,
    pub feedback_token_file: Option<PathBuf>,
    pub aim: Objective,
    pub explain_headers: bool,
    pub engine_api_key: Option<http::HeaderValue>,
    pub limits: LimitFlags,
    pub timeouts: TimeoutFlags,
}

impl GatewayFlags {
    /// Checks what clap cannot: combinations, files, ranges.
    ///
    /// # Errors
    /// Names the flag that is wrong and why.
    pub fn settings(self) -> Result<Settings> {
        let flags = &self.source;
        if !flags.kubernetes && flags.manifests.is_none() && !flags.pd_disaggregation {
            bail!(
                "say what to serve: --kubernetes, --manifests DIR, or --pd-disaggregation with \
                 --prefill and --decode"
            );
        }
        flags.exposure.check(flags.kubernetes, self.admin_listen.port())?;
        if flags.pd_disaggregation && (flags.prefill.is_empty() || flags.decode.is_empty()) {
            bail!("--pd-disaggregation needs at least one --prefill and one --decode");
        }
        if self.limits.max_attempts == 0 {
            bail!("--max-attempts is 0: a request needs at least one attempt");
        }
        if self.limits.max_deaths == 0 {
            bail!("--max-deaths is 0: the first engine to die cannot be spared");
        }
        if self.limits.max_head < 8 << 10 {
            bail!("--max-head is {}: at least 8192 bytes are needed", self.limits.max_head);
        }
        let memory = self.limits.max_body_memory;
        if memory < self.limits.max_body || memory > tokio::sync::Semaphore::MAX_PERMITS {
            bail!("--max-body-memory is {memory}: at least --max-body bytes are needed");
        }
        if self.limits.max_requests_per_worker == 0 || self.limits.max_connections == 0 {
            bail!("--max-requests-per-worker and --max-connections must be at least 1");
        }
        let targets = (self.slo_ttft, self.slo_itl);
        if targets != (None, None) && self.policy.0 != Policy::Predicted {
            bail!("--slo-ttft and --slo-itl need --policy predicted: no other predicts");
        }
        let aim = Objective { targets: targets_of(targets), ..Objective::default() };
        let engine_api_key = self.engine_api_key_file.as_deref().map(bearer).transpose()?;
        let listen_address =
            if self.source.pd_disaggregation { self.source.host } else { self.listen_address };
        Ok(Settings {
            source: self.source,
            listen_address,
            admin_listen: self.admin_listen,
            admin_guard: Arc::new(Guard::new(
                self.admin_token_file.as_deref(),
                self.admin_without_token,
            )),
            policy: self.policy.0,
            agents: self.agent,
            feedback_token_file: self.feedback_token_file,
            aim,
            explain_headers: self.explain_headers,
            engine_api_key,
            limits: self.limits,
            timeouts: self.timeouts,
        })
    }
}

fn bearer(path: &std::path::Path) -> Result<http::HeaderValue> {
    let key = std::fs::read_to_string(path)
        .with_context(|| format!("--engine-api-key-file {}", path.display()))?;
    let key = key.trim();
    if key.is_empty() {
        bail!("--engine-api-key-file {}: the file is empty", path.display());
    }
    let mut value = http::HeaderValue::try_from(format!("Bearer {key}")).with_context(|| {
        format!("--engine-api-key-file {}: not usable in a header", path.display())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Parses `IP:PORT` or `IP:PORT=NODE`.
fn agent(text: &str) -> Result<AgentAddress, String> {
    let (address, node) = match text.split_once('=') {
        Some((address, node)) => (address, Some(node)),
        None => (text, None),
    };
    let address = address.parse().map_err(|_| format!("`{address}` is not IP:PORT"))?;
    if node.is_some_and(str::is_empty) {
        return Err(format!("`{text}` names no node after the ="));
    }
    Ok(AgentAddress { address, node: node.map(Into::into), name: text.into() })
}

/// Parses `1h`, `5m`, `300s`, `100ms`; no unit is an error, since it would be a guess.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{text}` needs a unit: ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no duration"))?;
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("`{text}` is out of range"))
}

#[cfg(test)]
mod tests;
