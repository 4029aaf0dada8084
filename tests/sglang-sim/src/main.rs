//! The `sglang-sim` command.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use sglang_sim::{Config, Engine, Role, Timing, Version};
use tokio::signal::unix::{SignalKind, signal};

/// Simulates an SGLang prefill, decode or ordinary server, without a model.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Role of the engine: prefill, decode or unified.
    #[arg(long, alias = "disaggregation-mode")]
    role: Role,
    /// Address that all listeners bind and all connections come from.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// HTTP port. 0 picks a free port.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Prefill: port of the bootstrap server, 0 picks a free port. Decode: the bootstrap port of
    /// requests that name none.
    #[arg(long, alias = "disaggregation-bootstrap-port", default_value_t = 34000)]
    bootstrap_port: u16,
    /// SGLang version to imitate: 0.4.10 or 0.5.
    #[arg(long, default_value = "0.5")]
    engine: Version,
    /// Model path that the engine reports.
    #[arg(long, default_value = "/models/Qwen3-32B")]
    model_path: String,
    /// Model name in responses. Defaults to the model path.
    #[arg(long)]
    served_model_name: Option<String>,
    /// Tokens per KV page. Prefill and decode must agree.
    #[arg(long, default_value_t = 1)]
    page_size: u32,
    /// Type of the KV cache. Prefill and decode must agree.
    #[arg(long, default_value = "auto")]
    kv_cache_dtype: String,
    /// Maximum number of tokens of prompt and answer together.
    #[arg(long, default_value_t = 131_072)]
    context_length: usize,
    /// Prefill speed in prompt tokens per second. 0 makes prefill instant.
    #[arg(long, default_value_t = 200_000)]
    prefill_tokens_per_second: u64,
    /// Time between two tokens of an answer, in milliseconds.
    #[arg(long, default_value_t = 2.0)]
    inter_token_ms: f64,
    /// Time from the arrival of the KV cache at a decode to its first token, in milliseconds.
    #[arg(long, default_value_t = 0.0)]
    decode_first_step_ms: f64,
    /// Time that a decode waits before it sends prefill where the KV cache goes, in milliseconds.
    #[arg(long, default_value_t = 0.0)]
    decode_admission_ms: f64,
    /// Time that a prefill waits before it pushes the KV cache, in milliseconds.
    #[arg(long, default_value_t = 0.0)]
    kv_transfer_ms: f64,
    /// Maximum number of running requests. Further requests wait.
    #[arg(long, default_value_t = 256)]
    max_running_requests: usize,
    /// Maximum number of waiting requests. Further requests get 503. Unlimited by default.
    #[arg(long)]
    max_queued_requests: Option<usize>,
    /// Size of the KV pool in tokens.
    #[arg(long, default_value_t = 500_000)]
    max_total_tokens: usize,
    /// Cache what was computed of prompts, up to the size of the KV pool. POST /flush_cache empties it.
    #[arg(long)]
    prefix_cache: bool,
    /// KV bytes per prompt token, at least 8.
    #[arg(long, default_value_t = 1024)]
    kv_bytes_per_token: usize,
    /// API key that requests must send. None by default.
    #[arg(long)]
    api_key: Option<String>,
    /// API key for administration. Defaults to the API key.
    #[arg(long)]
    admin_api_key: Option<String>,
    /// Number of data-parallel ranks.
    #[arg(long, default_value_t = 1)]
    dp_size: usize,
    /// Number of pipeline stages that /server_info reports.
    #[arg(long, default_value_t = 1)]
    pp_size: usize,
    /// Decode allocation policy that /server_info reports. Prefill and decode must agree.
    #[arg(long, alias = "disaggregation-decode-allocation-policy")]
    decode_allocation_policy: Option<String>,
    /// Serves POST /pd_role_switch, which turns an idle prefill into a decode and back.
    #[arg(long, alias = "enable-pd-role-switch")]
    role_switch: bool,
    /// An answer ends by itself after this many tokens, and at most after twice as many.
    #[arg(long, default_value_t = 96)]
    natural_length: usize,
    /// Time a prefill waits for its decode, in seconds.
    #[arg(long, default_value_t = 300.0)]
    bootstrap_timeout: f64,
    /// Time a decode waits for KV, in seconds.
    #[arg(long, default_value_t = 300.0)]
    waiting_timeout: f64,
    /// Interval at which a decode probes the bootstrap servers of its prefills, in seconds.
    #[arg(long, default_value_t = 5.0)]
    heartbeat_interval: f64,
    /// Delay between a streaming client's disconnect and the abort, in seconds.
    #[arg(long, default_value_t = 2.0)]
    disconnect_stream: f64,
    /// Interval at which the connection of a non-streaming client is checked, in seconds.
    #[arg(long, default_value_t = 4.0)]
    disconnect_poll: f64,
    /// Time until /health and the registry report ready, in seconds.
    #[arg(long, default_value_t = 0.0)]
    start_delay: f64,
    /// Sets prefill time and inter-token time to zero.
    #[arg(long)]
    instant: bool,
    /// Runs legs without waiting for each other and without a KV transfer.
    #[arg(long)]
    no_rendezvous: bool,
    /// Maximum number of requests kept for /sim/received. 0 keeps none.
    #[arg(long, default_value_t = 4096)]
    record_limit: usize,
}

fn seconds(value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value)
        .with_context(|| format!("{value} is not a duration in seconds"))
}

impl Arguments {
    fn config(self) -> anyhow::Result<Config> {
        let timing = Timing {
            bootstrap_timeout: seconds(self.bootstrap_timeout)?,
            waiting_timeout: seconds(self.waiting_timeout)?,
            heartbeat_interval: seconds(self.heartbeat_interval)?.max(Duration::from_millis(10)),
            disconnect_stream: seconds(self.disconnect_stream)?,
            disconnect_poll: seconds(self.disconnect_poll)?,
            ..Timing::default()
        };
        let config = Config {
            version: self.engine,
            host: self.host,
            port: self.port,
            bootstrap_port: self.bootstrap_port,
            model_path: self.model_path,
            served_model_name: self.served_model_name,
            page_size: self.page_size,
            kv_cache_dtype: self.kv_cache_dtype,
            context_length: self.context_length,
            prefill_tokens_per_second: self.prefill_tokens_per_second,
            inter_token: seconds(self.inter_token_ms / 1000.0)?,
            decode_first_step: seconds(self.decode_first_step_ms / 1000.0)?,
            decode_admission: seconds(self.decode_admission_ms / 1000.0)?,
            kv_transfer: seconds(self.kv_transfer_ms / 1000.0)?,
            max_running_requests: self.max_running_requests,
            max_queued_requests: self.max_queued_requests,
            max_total_tokens: self.max_total_tokens,
            prefix_cache: self.prefix_cache,
            kv_bytes_per_token: self.kv_bytes_per_token,
            api_key: self.api_key,
            admin_api_key: self.admin_api_key,
            dp_size: self.dp_size,
            pp_size: self.pp_size,
            decode_allocation_policy: self.decode_allocation_policy,
            role_switch: self.role_switch,
            natural_length: self.natural_length,
            rendezvous: !self.no_rendezvous,
            start_delay: seconds(self.start_delay)?,
            record_limit: self.record_limit,
            timing,
            ..Config::new(self.role)
        };
        Ok(if self.instant { config.instant() } else { config })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let config = Arguments::parse().config()?;
    let role = config.role;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let engine = Engine::start(config).await.context("cannot start")?;
    let bootstrap = engine.bootstrap_address().map(|a| format!(" bootstrap {a}"));
    println!(
        "sglang-sim {} ready on {}{}",
        role.engine_type(),
        engine.address(),
        bootstrap.unwrap_or_default()
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = engine.died() => return Ok(ExitCode::from(137)),
    }
    engine.stop().await;
    Ok(ExitCode::SUCCESS)
}
