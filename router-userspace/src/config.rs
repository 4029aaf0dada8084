//! Flags and environment variables, parsed and validated once into [`GatewaySettings`].

mod commands;
mod examples;
mod exposure;
mod http;
mod mirrors;
mod policy;
mod ranges;
mod recent;
mod traces;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use router_core::fleet::AgentAddress;
use router_core::route::Cors;
use router_core::schedule::{Objective, Policy};
use router_core::sglang::AllowedFields;

use self::commands::long_version;
pub use self::commands::{CheckFlags, CompletionFlags, CrdFlags, command};
use self::examples::{
    AGENT_EXAMPLES, CHECK_EXAMPLES, COMPLETIONS_EXAMPLES, CRDS_EXAMPLES, GATEWAY_EXAMPLES,
    SIMULATE_EXAMPLES, TOP_EXAMPLES,
};
pub use self::exposure::{ExposureFlags, Labels};
pub use self::http::HttpFlags;
pub use self::mirrors::MirrorFlags;
pub use self::policy::PolicyName;
use self::policy::targets_of;
pub use self::recent::RecentFlags;
pub use self::traces::{TraceEndpoint, TraceFlags};
use self::values::{agent, size};
pub(crate) use self::values::{duration, milliseconds, socket_address};
use crate::agent::flags::AgentFlags;
use crate::simulate::SimulateFlags;
use crate::token::Guard;
use crate::top::TopFlags;

/// Inference gateway for SGLang with prefill/decode disaggregation.
#[derive(Debug, Parser)]
#[command(version, long_version = long_version(), about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub telemetry: Telemetry,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the HTTP gateway, which sends each request to one prefill and one decode engine.
    #[command(after_help = GATEWAY_EXAMPLES)]
    Gateway(Box<GatewayFlags>),
    /// Runs the node agent, which measures this node's pods with eBPF and publishes their load.
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(Box<AgentFlags>),
    /// Shows a gateway's pools, workers, time to first token by part, and last failures.
    #[command(after_help = TOP_EXAMPLES)]
    Top(Box<TopFlags>),
    /// Compares scheduling policies on a simulated fleet and prints latency percentiles.
    #[command(after_help = SIMULATE_EXAMPLES)]
    Simulate(Box<SimulateFlags>),
    /// Checks a directory of manifests as the gateway reads it, and prints what is wrong with it.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckFlags),
    /// Prints a script that completes the commands and flags of pd-router in a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionFlags),
    /// Prints the CustomResourceDefinitions of pd-router as YAML.
    #[command(after_help = CRDS_EXAMPLES)]
    Crds(CrdFlags),
}

/// Flags that every command has: which events are logged, and in which format.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct Telemetry {
    /// Log filter: a level (error, warn, info, debug, trace), or directives such as
    /// `info,pd_router=debug`. Logs are written to standard error.
    #[arg(
        long,
        global = true,
        env = "PD_ROUTER_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Format of log lines.
    #[arg(long, global = true, env = "PD_ROUTER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Whether the user wants no colour in any program (no-color.org).
pub(crate) fn refuses_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// Flags of `pd-router gateway`.
#[derive(Debug, Args)]
pub struct GatewayFlags {
    #[command(flatten)]
    pub source: SourceFlags,
    #[command(flatten)]
    pub service: ServiceFlags,
    #[command(flatten)]
    pub http: HttpFlags,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub timeouts: TimeoutFlags,
    #[command(flatten)]
    pub traces: TraceFlags,
}

/// Ports, access and scheduling of `pd-router gateway`.
#[derive(Debug, Args)]
#[command(next_help_heading = "How to serve")]
pub struct ServiceFlags {
    /// IP address that the listeners of every Gateway bind. With --pd-disaggregation, --host is
    /// used instead.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "IP")]
    pub listen_address: IpAddr,
    /// Address of the admin port, which serves /livez, /readyz, /metrics, /fleet, /requests and /crashes,
    /// and a page at /.
    #[arg(long, default_value = "127.0.0.1:9901", value_parser = socket_address, value_name = "IP:PORT")]
    pub admin_listen: SocketAddr,
    /// File with the bearer token that /metrics, /fleet, /requests and /crashes require. The file is read
    /// again when it changes. Without this flag, they answer only requests to a loopback address.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Serve /metrics, /fleet, /requests and /crashes without a token to every client that can reach the
    /// admin port.
    #[arg(long, conflicts_with = "admin_token_file")]
    pub admin_allow_unauthenticated: bool,
    /// Address of the admin port of another gateway before the same engines, in addition to those found in
    /// the cluster. Gateways tell each other the hashes of requests that crashed engines, so that each such
    /// request is refused by all. They must have the same --admin-token-file. May be repeated.
    #[arg(long, value_name = "IP:PORT", value_parser = socket_address, requires = "admin_token_file")]
    pub peer: Vec<SocketAddr>,
    /// Scheduling policy, which chooses the prefill and the decode engine of a request:
    /// round_robin, random, power_of_two, least_load, kv or predicted.
    #[arg(long, default_value_t = PolicyName(Policy::default()))]
    pub policy: PolicyName,
    /// Address of a node agent to subscribe to, in addition to the agents found in the cluster. If
    /// NODE is given, the agent is trusted only for pods on that node. May be repeated.
    #[arg(long, value_name = "IP:PORT[=NODE]", value_parser = agent)]
    pub agent: Vec<AgentAddress>,
    /// File with the bearer token that is sent to agents (their --token-file).
    #[arg(long, value_name = "FILE")]
    pub agent_token_file: Option<PathBuf>,
    /// Target for the time to first token, for example `2s`. Pairs that are predicted to meet it
    /// are preferred to pairs that are not. Requires --policy predicted.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub slo_ttft: Option<Duration>,
    /// Target for the time between two output tokens, for example `50ms`. Pairs that are predicted
    /// to meet it are preferred to pairs that are not. Requires --policy predicted.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub slo_itl: Option<Duration>,
    /// Add response headers that explain the scheduling: x-pd-router-prefill and
    /// x-pd-router-decode name the pods, x-pd-router-choice holds the predicted cost,
    /// x-pd-router-timeline where the time until the response went. They reveal pod names to clients.
    #[arg(long)]
    pub explain_headers: bool,
    #[command(flatten)]
    pub recent: RecentFlags,
    /// Answer 404 to a request that names another model than the engines of its pool report. Without
    /// this flag, a pool of one model serves every name, as SGLang does. A pool of several models is
    /// always strict.
    #[arg(long)]
    pub strict_models: bool,
    /// File with the API key of the engines, which is sent with probes and /abort_request. Client
    /// requests keep their own Authorization header.
    #[arg(long, value_name = "FILE")]
    pub engine_api_key_file: Option<PathBuf>,
}

/// Where the fleet comes from: a cluster, a directory of manifests, or engine URLs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What to serve")]
pub struct SourceFlags {
    /// Serve the Gateways of a Kubernetes cluster: the cluster that this pod runs in, or the one in
    /// $KUBECONFIG or ~/.kube/config.
    #[arg(long, conflicts_with_all = ["manifests", "pd_disaggregation", "prefill", "decode"])]
    pub kubernetes: bool,
    #[command(flatten)]
    pub exposure: ExposureFlags,
    /// Share of the ready pods of a pool, of one of its roles, or of a Service, in percent. If more of
    /// them, and at least two, lose their readiness in Kubernetes within 30 seconds while they answer
    /// probes and requests, they stay candidates until Kubernetes reports them as ready again or they
    /// stop answering. 100 always believes Kubernetes.
    #[arg(
        long,
        default_value_t = 50,
        value_name = "PERCENT",
        value_parser = clap::value_parser!(u8).range(..=100)
    )]
    pub readiness_panic_threshold: u8,
    /// Directory of YAML or JSON manifests to serve: Gateway, HTTPRoute, InferencePool, policies and
    /// Pods. The directory is polled, and changed files are reloaded.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["pd_disaggregation", "prefill", "decode"])]
    pub manifests: Option<PathBuf>,
    /// Serve the engines of --prefill and --decode, without manifests. Compatible with
    /// sglang-router.
    #[arg(long)]
    pub pd_disaggregation: bool,
    /// URL of a prefill engine, and its bootstrap port (what the engine reports if omitted or
    /// `none`). May be repeated.
    #[arg(long, num_args = 1..=2, value_names = ["URL", "BOOTSTRAP_PORT"], action = clap::ArgAction::Append)]
    pub prefill: Vec<String>,
    /// URL of a decode engine. May be repeated.
    #[arg(long, value_name = "URL")]
    pub decode: Vec<String>,
    /// IP address to listen on with --pd-disaggregation.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "IP")]
    pub host: IpAddr,
    /// Port to listen on with --pd-disaggregation.
    #[arg(long, default_value_t = 30000)]
    pub port: u16,
}

impl SourceFlags {
    /// Groups `--prefill`'s values: each URL with the port that follows it. Clap keeps the values
    /// of all occurrences in one list.
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

/// Limits on memory, connections, requests and retries. Sizes may carry a unit: `64Mi`, `1GiB`, `500MB`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Maximum size of a request body in bytes, before and after it is decoded. A larger request gets
    /// 413.
    #[arg(long, default_value_t = 64 << 20, value_parser = size, value_name = "BYTES")]
    pub max_body: usize,
    /// Maximum size in bytes of all request bodies in memory together. A request that would exceed
    /// it gets 503.
    #[arg(long, default_value_t = 4 << 30, value_parser = size, value_name = "BYTES")]
    pub max_body_memory: usize,
    /// Maximum size of a request's headers in bytes, 8192 to 67108864. A larger request gets 431.
    #[arg(long, default_value_t = 64 << 10, value_parser = size, value_name = "BYTES")]
    pub max_header_bytes: usize,
    /// Maximum number of open client connections. When it is reached, new connections wait in the
    /// listen backlog.
    #[arg(long, default_value_t = 32_768, value_name = "COUNT")]
    pub max_connections: usize,
    /// Maximum number of concurrent requests on one engine, unless the engine reports its own
    /// limit. When every engine is full, requests wait in the queue.
    #[arg(long, default_value_t = 1024, value_name = "COUNT")]
    pub max_requests_per_worker: u32,
    /// Maximum size in bytes of a response that is not a stream. Such a response is buffered
    /// completely, so that the request can be retried if the engine fails; a larger one gets 502.
    #[arg(long, default_value_t = 256 << 20, value_parser = size, value_name = "BYTES")]
    pub max_response: usize,
    /// Maximum size in bytes of all buffered responses in memory together, from when their bytes
    /// arrive until clients have read them. A request whose response would exceed it gets 503.
    #[arg(long, default_value_t = 1 << 30, value_parser = size, value_name = "BYTES")]
    pub max_response_memory: usize,
    /// Maximum number of queued requests per pool, and of forwarded requests per pool that wait for a ready
    /// worker. When it is reached, a new request gets 429.
    #[arg(long, default_value_t = 1024, value_name = "COUNT")]
    pub max_queued: usize,
    /// Maximum number of attempts for one request, including the first. Each attempt uses another
    /// pair if there is one. Retries also have a budget for each pool.
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pub max_attempts: u32,
    /// Number of engines that may crash during one request. Then the request gets 502 and is not
    /// retried, because the request itself may cause the crashes. After as many crashes, and at least
    /// two, requests with the same content get 422 for ten minutes.
    #[arg(long, default_value_t = 2, value_name = "COUNT")]
    pub max_engine_crashes: u32,
    #[command(flatten)]
    pub mirrors: MirrorFlags,
    /// Maximum number of idle connections kept open to each engine.
    #[arg(long, default_value_t = 512, value_name = "COUNT")]
    pub max_idle_per_worker: usize,
}

/// Timeouts and intervals. Durations carry a unit: `300s`, `5m`, `100ms`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Timeouts")]
pub struct TimeoutFlags {
    /// Time a request may wait for capacity before it gets 503.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub queue_timeout: Duration,
    /// Time to connect to an engine. After it, the attempt fails and may be retried.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub connect_timeout: Duration,
    /// Time for the complete response of a prefill engine. After it, the attempt fails.
    #[arg(long, default_value = "300s", value_parser = duration, value_name = "DURATION")]
    pub prefill_timeout: Duration,
    /// Time until the first event of a streamed response. After it, the attempt fails.
    #[arg(long, default_value = "300s", value_parser = duration, value_name = "DURATION")]
    pub first_event_timeout: Duration,
    /// Time until the first byte of a response that is not a stream. Engines send it when the whole
    /// response is generated. After it, the attempt fails.
    #[arg(long, default_value = "30m", value_parser = duration, value_name = "DURATION")]
    pub first_byte_timeout: Duration,
    /// Time between two chunks of a response. After it, the request is aborted.
    #[arg(long, default_value = "300s", value_parser = duration, value_name = "DURATION")]
    pub stream_idle_timeout: Duration,
    /// Time without an answer to any probe, counted from the second lost probe, until an engine
    /// counts as down. Its requests are then retried on another pair or aborted.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub unresponsive_timeout: Duration,
    /// Time for a complete request, unless an HTTPRoute or a BackendTrafficPolicy sets one.
    #[arg(long, default_value = "24h", value_parser = duration, value_name = "DURATION")]
    pub request_timeout: Duration,
    /// Time for a client to send its request headers. Idle client connections are closed after it
    /// too.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub header_timeout: Duration,
    /// Time for a client to send the next chunk of its request body. After it, the request gets
    /// 408.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub body_timeout: Duration,
    /// Time for a client to read the next chunk of its response, at most 576h. After it, the
    /// connection is closed and the request is aborted at the engines.
    #[arg(long, default_value = "300s", value_parser = duration, value_name = "DURATION")]
    pub send_timeout: Duration,
    /// Time after which an idle connection to an engine is closed. Keep it below the engine's own
    /// keep-alive timeout (5s with uvicorn), so that no request meets a closing connection.
    #[arg(long, default_value = "4s", value_parser = duration, value_name = "DURATION")]
    pub pool_idle_timeout: Duration,
    /// Interval between two health probes of an engine that is up.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub probe_interval: Duration,
    /// Time for an engine to answer a health probe. After it, the probe counts as lost.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub probe_timeout: Duration,
    /// Interval at which the /server_info of an engine that is up is read again: an engine may change its
    /// role while it runs.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub engine_info_interval: Duration,
    /// Interval between two polls of the load that an engine reports.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub engine_load_interval: Duration,
    /// Time for running requests to finish after SIGTERM. After it, they are aborted.
    #[arg(long, default_value = "24h", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
}

/// The gateway's flags after validation.
#[derive(Debug)]
pub struct GatewaySettings {
    pub source: SourceFlags,
    pub listen_address: IpAddr,
    pub admin_listen: SocketAddr,
    pub admin_guard: Arc<Guard>,
    /// The admin ports of other gateways.
    pub peers: Vec<SocketAddr>,
    pub policy: Policy,
    pub agents: Vec<AgentAddress>,
    pub agent_token_file: Option<PathBuf>,
    pub aim: Objective,
    pub explain_headers: bool,
    pub recent: RecentFlags,
    pub traces: TraceFlags,
    pub strict_models: bool,
    pub engine_api_key: Option<::http::HeaderValue>,
    pub http: HttpFlags,
    /// Further fields of bodies that clients may send to engines.
    pub allowed_fields: AllowedFields,
    /// The CORS policy for requests of routes without a CORS filter.
    pub cors: Option<Arc<Cors>>,
    pub limits: LimitFlags,
    pub timeouts: TimeoutFlags,
}

impl GatewayFlags {
    /// Validates what clap cannot: combinations of flags, files, and ranges.
    ///
    /// # Errors
    /// Names the invalid flag and the reason.
    pub fn settings(self) -> Result<GatewaySettings> {
        let (flags, service) = (&self.source, self.service);
        if !flags.kubernetes && flags.manifests.is_none() && !flags.pd_disaggregation {
            bail!(
                "no source to serve: set --kubernetes, --manifests DIR, or --pd-disaggregation with \
                 --prefill and --decode"
            );
        }
        flags.exposure.check(flags.kubernetes, service.admin_listen.port())?;
        if flags.pd_disaggregation && (flags.prefill.is_empty() || flags.decode.is_empty()) {
            bail!("--pd-disaggregation requires at least one --prefill and one --decode");
        }
        self.limits.check()?;
        self.timeouts.check()?;
        for (flag, file) in [
            ("--admin-token-file", &service.admin_token_file),
            ("--agent-token-file", &service.agent_token_file),
        ] {
            let Some(file) = file else { continue };
            check_token_file(flag, file, flags.kubernetes)?;
        }
        let targets = (service.slo_ttft, service.slo_itl);
        if targets != (None, None) && service.policy.0 != Policy::Predicted {
            bail!("--slo-ttft and --slo-itl require --policy predicted");
        }
        let aim = Objective { targets: targets_of(targets), ..Objective::default() };
        let engine_api_key = service.engine_api_key_file.as_deref().map(bearer).transpose()?;
        let listen_address =
            if self.source.pd_disaggregation { self.source.host } else { service.listen_address };
        let allowed_fields = self.http.allowed_fields()?;
        let cors = self.http.cors(self.source.pd_disaggregation)?;
        Ok(GatewaySettings {
            source: self.source,
            listen_address,
            admin_listen: service.admin_listen,
            admin_guard: Arc::new(Guard::new(
                service.admin_token_file.as_deref(),
                service.admin_allow_unauthenticated,
            )),
            peers: service.peer,
            policy: service.policy.0,
            agents: service.agent,
            agent_token_file: service.agent_token_file,
            aim,
            explain_headers: service.explain_headers,
            recent: service.recent,
            traces: self.traces,
            strict_models: service.strict_models,
            engine_api_key,
            allowed_fields,
            cors,
            http: self.http,
            limits: self.limits,
            timeouts: self.timeouts,
        })
    }
}

/// What is wrong if a flag of this process has a negative value, which clap takes for another flag.
#[must_use]
pub fn negative_argument() -> Option<String> {
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into());
    let arguments: Vec<String> = arguments.collect();
    let (flag, value) = values::negative_value(&arguments)?;
    Some(format!("{flag} is {value}: it must not be negative"))
}

/// Checks that a file can be read. In a cluster it may be missing: the Secret that it is mounted from may be
/// created later.
fn check_token_file(flag: &str, path: &std::path::Path, may_be_missing: bool) -> Result<()> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) if may_be_missing && error.kind() == std::io::ErrorKind::NotFound => {
            let path = path.display();
            tracing::warn!(flag, %path, "token file missing; no client is admitted until it exists");
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{flag} {}", path.display())),
    }
}

fn bearer(path: &std::path::Path) -> Result<::http::HeaderValue> {
    let key = std::fs::read_to_string(path)
        .with_context(|| format!("--engine-api-key-file {}", path.display()))?;
    let key = key.trim();
    if key.is_empty() {
        bail!("--engine-api-key-file {}: the file is empty", path.display());
    }
    let mut value = ::http::HeaderValue::try_from(format!("Bearer {key}")).with_context(|| {
        format!(
            "--engine-api-key-file {}: the key contains characters that an HTTP header cannot hold",
            path.display()
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
pub(crate) mod tests;
