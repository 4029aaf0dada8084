//! Settings of a simulated engine: role, version, addresses, sizes, speeds and timeouts.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

/// The role of an engine in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Computes the prompt and pushes its KV to a decode engine.
    Prefill,
    /// Receives KV and generates the answer.
    Decode,
    /// Does both without a peer, as an ordinary SGLang server.
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
            other => Err(format!("unknown role {other:?}: use prefill, decode or unified")),
        }
    }
}

/// The SGLang version to imitate. The two differ in endpoints, registry parameters and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0.4.10, the version that the documents use.
    V0_4_10,
    /// 0.5.x: response shapes of 0.5.12, with `/ready` and ABORT frames of later versions.
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
            other => Err(format!("unknown engine version {other:?}: use 0.4.10 or 0.5")),
        }
    }
}

/// All settings of an engine. `Config::new(role)` gives one that starts and answers at once.
#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    pub version: Version,
    /// Address of all listeners, and source address of all outgoing connections.
    pub host: IpAddr,
    /// HTTP port. 0 picks a free port.
    pub port: u16,
    /// Prefill: port of the bootstrap server, 0 picks a free port. Decode: the bootstrap port of
    /// requests that name none.
    pub bootstrap_port: u16,
    pub model_path: String,
    /// Model name in responses. Defaults to the model path.
    pub served_model_name: Option<String>,
    pub page_size: u32,
    pub kv_cache_dtype: String,
    pub context_length: usize,
    /// Prefill speed in prompt tokens per second. 0 makes prefill instant.
    pub prefill_tokens_per_second: u64,
    pub inter_token: Duration,
    /// Time from the arrival of the KV cache at a decode to its first token.
    pub decode_first_step: Duration,
    /// Time that a decode waits before it sends prefill where the KV cache goes.
    pub decode_admission: Duration,
    /// Time that a prefill waits before it pushes the KV cache.
    pub kv_transfer: Duration,
    pub max_running_requests: usize,
    /// Maximum number of requests that wait for a running slot. More are rejected with 503.
    pub max_queued_requests: Option<usize>,
    /// Size of the KV pool in tokens.
    pub max_total_tokens: usize,
    /// Whether what was computed of a prompt is cached, in a KV pool's worth of tokens.
    pub prefix_cache: bool,
    /// KV bytes per prompt token, at least 8.
    pub kv_bytes_per_token: usize,
    pub api_key: Option<String>,
    pub admin_api_key: Option<String>,
    pub dp_size: usize,
    /// Pipeline stages that `/server_info` reports. The simulated engine has one.
    pub pp_size: usize,
    /// The decode allocation policy that `/server_info` reports, as engines do from 0.5.22 on.
    pub decode_allocation_policy: Option<String>,
    /// Serves `POST /pd_role_switch`, as engines do from 0.5.21 on.
    pub role_switch: bool,
    /// An answer ends by itself after this many tokens, and at most after twice as many.
    pub natural_length: usize,
    /// When false, legs do not wait for each other and no KV is transferred.
    pub rendezvous: bool,
    /// Time from the start until `/health` and the registry report ready.
    pub start_delay: Duration,
    pub timing: Timing,
    /// Maximum number of recorded requests, aborts and rooms. The oldest are dropped.
    pub record_limit: usize,
    /// Maximum size of a request body in bytes.
    pub body_limit: usize,
}

/// Timeouts and intervals of the engine. Tests lower them.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a prefill waits for the KV indices of its decode.
    pub bootstrap_timeout: Duration,
    /// How long a decode waits for KV.
    pub waiting_timeout: Duration,
    /// Interval of a decode's `GET /health` at the bootstrap server.
    pub heartbeat_interval: Duration,
    pub heartbeat_misses: u32,
    /// Pause between two attempts of a 0.5 decode to read the registry.
    pub route_retry: Duration,
    pub route_attempts: u32,
    /// Timeout of one registry request, and of connecting to a peer.
    pub peer_timeout: Duration,
    /// Delay between a streaming client's disconnect and the abort.
    pub disconnect_stream: Duration,
    /// Interval at which the connection of a non-streaming client is checked.
    pub disconnect_poll: Duration,
    /// Minimum duration of `/health`.
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
    /// An engine on 127.0.0.1 with free ports, fast, with SGLang's own timeouts.
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
            decode_first_step: Duration::ZERO,
            decode_admission: Duration::ZERO,
            kv_transfer: Duration::ZERO,
            max_running_requests: 256,
            max_queued_requests: None,
            max_total_tokens: 500_000,
            prefix_cache: false,
            kv_bytes_per_token: 1024,
            api_key: None,
            admin_api_key: None,
            dp_size: 1,
            pp_size: 1,
            decode_allocation_policy: None,
            role_switch: false,
            natural_length: 96,
            rendezvous: true,
            start_delay: Duration::ZERO,
            timing: Timing::default(),
            record_limit: 4096,
            body_limit: 512 << 20,
        }
    }

    /// Sets prefill time and inter-token time to zero.
    #[must_use]
    pub fn instant(mut self) -> Self {
        self.prefill_tokens_per_second = 0;
        self.inter_token = Duration::ZERO;
        self
    }

    /// The model name in responses and in `/v1/models`.
    #[must_use]
    pub fn model_name(&self) -> &str {
        self.served_model_name.as_deref().unwrap_or(&self.model_path)
    }

    /// The bootstrap port of a request that names none.
    #[must_use]
    pub fn default_bootstrap_port(&self) -> u16 {
        if self.bootstrap_port == 0 { 8998 } else { self.bootstrap_port }
    }

    /// The address that peers are given. For a wildcard address it is the one from which this host
    /// reaches others, and loopback only where the host has no other.
    #[must_use]
    pub fn reachable_host(&self) -> IpAddr {
        if !self.host.is_unspecified() {
            return self.host;
        }
        let own = outward(self.host).or_else(|| interface_address(self.host.is_ipv4()));
        own.unwrap_or(match self.host {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        })
    }

    /// Whether the engine is half of a prefill/decode pair.
    #[must_use]
    pub fn disaggregated(&self) -> bool {
        self.role != Role::Unified
    }
}

/// The source address of packets to the internet. Connecting a UDP socket sends nothing.
fn outward(wildcard: IpAddr) -> Option<IpAddr> {
    // Addresses of documentation, which no host has.
    let other = if wildcard.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    let socket = UdpSocket::bind((wildcard, 0)).ok()?;
    socket.connect((other, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

/// The first address of an interface that is not loopback, for a host without a default route.
fn interface_address(v4: bool) -> Option<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?.filter_map(|interface| interface.address);
    let mut addresses = addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    addresses.find(|address| address.is_ipv4() == v4 && !address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_of_an_engine_on_a_wildcard_address_are_given_no_loopback_address() {
        let config =
            Config { host: IpAddr::V4(Ipv4Addr::UNSPECIFIED), ..Config::new(Role::Prefill) };
        let host = config.reachable_host();
        assert!(!host.is_unspecified());
        // A host without any network has nothing but loopback.
        assert_eq!(host.is_loopback(), interface_address(true).is_none(), "{host}");
        let fixed = Config { host: IpAddr::V4(Ipv4Addr::LOCALHOST), ..config };
        assert!(fixed.reachable_host().is_loopback(), "a fixed address is used as it is");
    }
}
