//! [`SimulateFlags`]: which policies are compared, on which trace, and where the results go.

use std::path::PathBuf;

use clap::Args;
use router_simulator::InjectedFault;

/// Flags of `pd-router simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateFlags {
    /// File of {"timestamp","input_length","output_length","hash_ids"} lines, or a synthetic trace:
    /// `synthetic`, `synthetic-short`, `synthetic-long` or `synthetic-bursts`.
    #[arg(long, default_value = "synthetic", value_name = "FILE")]
    pub trace: String,
    /// Policies to compare, separated by commas, or `all`.
    #[arg(long, default_value = "all", value_delimiter = ',', value_name = "NAMES")]
    pub policies: Vec<String>,
    /// Loads to simulate, separated by commas, as shares of what the fleet serves without any
    /// caching.
    #[arg(long, default_value = "0.3,0.6,0.9", value_delimiter = ',', value_name = "SHARES")]
    pub load: Vec<f64>,
    /// First seed. Every policy gets the same requests and random numbers for a seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of seeds. The results are the mean over them.
    #[arg(long, default_value_t = 5)]
    pub seeds: u64,
    /// Simulates only this many requests from the start of the trace.
    #[arg(long, value_name = "COUNT")]
    pub requests: Option<usize>,
    /// Number of prefill workers.
    #[arg(long, default_value_t = 8)]
    pub prefills: usize,
    /// Number of decode workers.
    #[arg(long, default_value_t = 8)]
    pub decodes: usize,
    /// Number of gateways that schedule independently of each other.
    #[arg(long, default_value_t = 2)]
    pub gateways: usize,
    /// Age of an agent's measurements when a gateway uses them, in milliseconds.
    #[arg(long, default_value_t = 15.0)]
    pub report_age_ms: f64,
    /// Fault to inject: slow:WORKER:TIMES, busy:WORKER:SHARE, path:PREFILL:DECODE:SHARE or
    /// dies:WORKER. Append @FROM-UNTIL to limit it to a part of the time. Workers are numbered from
    /// 0, prefills first. The flag can be repeated.
    #[arg(long, value_name = "FAULT")]
    pub fault: Vec<InjectedFault>,
    /// Maximum time to first token of a request that counts as goodput, in milliseconds.
    #[arg(long, default_value_t = 5000.0)]
    pub slo_ttft_ms: f32,
    /// Maximum mean time between tokens of a request that counts as goodput, in milliseconds.
    #[arg(long, default_value_t = 50.0)]
    pub slo_itl_ms: f32,
    /// Writes the results as JSON to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a chart of p99 TTFT by load as SVG to this file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}
