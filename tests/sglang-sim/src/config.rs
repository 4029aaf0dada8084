//! What an engine is told at its start: role, version, addresses, sizes, speeds and timeouts.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

/// What an engine does for a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Computes the prompt and pushes its KV to a decode.
    Prefill,
    /// Receives KV and generates.
    Decode,
    /// An ordinary server that does both by itself.
    Unified,
}

impl Role {
    /// The value of `disaggregation_mode` in `/server_info`.
    #[must_use]
    pub fn disaggregation_mode(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Unified => "null",
        }
    }

    /// The value of the metric label `engine_type`.
    #[must_use]
    pub fn engine_type(self) -> &'static str {
        match self {
            Role::Unified => "unified",
            other => other.disaggregation_mode(),
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "prefill" => Ok(Role::Prefill),
            "decode" => Ok(Role::Decode),
            "unified" | "null" => Ok(Role::Unified),
            other => Err(format!("no role {other:?}: prefill, decode or unified")),
        }
    }
}

/// Which SGLang is imitated. The two differ in endpoints, registry parameters and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0.4.10, the documents' version.
    V0_4_10,
    /// 0.5.x: shapes as 0.5.12 gives them, with `/ready` and ABORT frames as later ones do.
    V0_5,
}

impl Version {
    /// The text of `version` in `/server_info`.
    #[must_use]
    pub fn number(self) -> &'static str {
        match self {
            Version::V0_4_10 => "0.4.10",
            Version::V0_5 => "0.5.12.post1",
        }
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            t if t.starts_with("0.4") => Ok(Version::V0_4_10),
            t if t.starts_with("0.5") => Ok(Version::V0_5),
            other => Err(format!("no engine {other:?}: 0.4.10 or 0.5")),
        }
    }
}

/// Every setting of an engine. `Config::new(role)` is one that starts and answers at once.
#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    pub version: Version,
    /// Address of all listeners and source address of all connections it makes.
    pub host: IpAddr,
    /// HTTP port; 0 takes any.
    pub port: u16,
    /// Bootstrap port of a prefill; on a decode, what a request without a port means. 0 takes any.
    pub bootstrap_port: u16,
    pub model_path: String,
    /// The model path unless given.
    pub served_model_name: Option<String>,
    pub page_size: u32,
    pub kv_cache_dtype: String,
    pub context_length: usize,
    /// Speed of prefill in prompt tokens a second; 0 takes no time.
    pub prefill_tokens_per_second: u64,
    pub inter_token: Duration,
    pub max_running_requests: usize,
    /// Requests that may wait for a running slot; more are refused with 503.
    pub max_queued_requests: Option<usize>,
    /// KV pool in tokens.
    pub max_total_tokens: usize,
    /// KV moved for each prompt token; at least 8.
    pub kv_bytes_per_token: usize,
    pub api_key: Option<String>,
    pub admin_api_key: Option<String>,
    pub dp_size: usize,
    /// Tokens after which an answer ends by itself, plus up to as many again.
    pub natural_length: usize,
    /// False: legs do not wait for each other and no KV moves.
    pub rendezvous: bool,
    /// Time from start until `/health` and the registry say ready.
    pub start_delay: Duration,
    pub timing: Timing,
    /// How many received requests, aborts and rooms are remembered; older ones are forgotten.
    pub record_limit: usize,
    /// Largest accepted body in bytes.
    pub body_limit: usize,
}

/// The engine's clocks, all lowered by tests.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a prefill waits for decode's KV indices.
    pub bootstrap_timeout: Duration,
    /// How long a decode waits for KV.
    pub waiting_timeout: Duration,
    /// Interval of decode's `GET /health` on the bootstrap server.
    pub heartbeat_interval: Duration,
    pub heartbeat_misses: u32,
    /// Pause between a 0.5 decode's attempts to read the registry.
    pub route_retry: Duration,
    pub route_attempts: u32,
    /// Limit of one registry request, and of connecting to a peer.
    pub peer_timeout: Duration,
    /// From a streaming client's disconnect to the abort.
    pub disconnect_stream: Duration,
    /// Interval at which the connection of a non-streaming client is looked at.
    pub disconnect_poll: Duration,
    /// What `/health` takes at least.
    pub health_pause: Duration,
    pub health_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            bootstrap_timeout: Duration::from_secs(300),
            waiting_timeout: Duration::from_secs(300),
            heartbeat_interval: Duration::from_secs(5),
            heartbeat_misses: 2,
            route_retry: Duration::from_secs(1),
            route_attempts: 15,
            peer_timeout: Duration::from_secs(5),
            disconnect_stream: Duration::from_secs(2),
            disconnect_poll: Duration::from_secs(4),
            health_pause: Duration::from_secs(1),
            health_timeout: Duration::from_secs(20),
        }
    }
}

impl Config {
    /// An engine on 127.0.0.1 with free ports, fast and with SGLang's own timeouts.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Config {
            role,
            version: Version::V0_5,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            bootstrap_port: 0,
            model_path: "/models/Qwen3-32B".into(),
            served_model_name: None,
            page_size: 1,
            kv_cache_dtype: "auto".into(),
            context_length: 131_072,
            prefill_tokens_per_second: 200_000,
            inter_token: Duration::from_millis(2),
            max_running_requests: 256,
            max_queued_requests: None,
            max_total_tokens: 500_000,
            kv_bytes_per_token: 1024,
            api_key: None,
            admin_api_key: None,
            dp_size: 1,
            natural_length: 96,
            rendezvous: true,
            start_delay: Duration::ZERO,
            timing: Timing::default(),
            record_limit: 4096,
            body_limit: 512 << 20,
        }
    }

    /// No prefill time and no inter-token time: what is left is protocol.
    #[must_use]
    pub fn instant(mut self) -> Self {
        self.prefill_tokens_per_second = 0;
        self.inter_token = Duration::ZERO;
        self
    }

    /// The name of the model in answers and in `/v1/models`.
    #[must_use]
    pub fn model_name(&self) -> &str {
        self.served_model_name.as_deref().unwrap_or(&self.model_path)
    }

    /// The port that a request without `bootstrap_port` means.
    #[must_use]
    pub fn default_bootstrap_port(&self) -> u16 {
        if self.bootstrap_port == 0 { 8998 } else { self.bootstrap_port }
    }

    /// The address that peers are told; a wildcard cannot be told.
    #[must_use]
    pub fn reachable_host(&self) -> IpAddr {
        if !self.host.is_unspecified() {
            return self.host;
        }
        match self.host {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        }
    }

    /// Whether a prefill leg and a decode leg must meet.
    #[must_use]
    pub fn disaggregated(&self) -> bool {
        self.role != Role::Unified
    }
}
