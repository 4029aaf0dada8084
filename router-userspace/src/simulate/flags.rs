//! [`SimulateFlags`]: what is compared with what, and where the numbers go.

use std::path::PathBuf;

use clap::Args;
use router_simulator::Trouble;

/// Flags of `pd-router simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateFlags {
    /// A trace of {"timestamp","input_length","output_length","hash_ids"} lines, or `synthetic`,
    /// `synthetic-short`, `synthetic-long`, `synthetic-bursts`.
    #[arg(long, default_value = "synthetic", value_name = "FILE")]
    pub trace: String,
    /// Policies to compare, or `all`.
    #[arg(long, default_value = "all", value_delimiter = ',', value_name = "NAMES")]
    pub policies: Vec<String>,
    /// Shares of what the fleet serves if nothing is cached.
    #[arg(long, default_value = "0.3,0.6,0.9", value_delimiter = ',', value_name = "SHARES")]
    pub load: Vec<f64>,
    /// The first seed; each repeats its requests and chances for every policy.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many seeds the numbers are the mean of.
    #[arg(long, default_value_t = 5)]
    pub seeds: u64,
    /// Takes only so many requests from the begin of the trace.
    #[arg(long, value_name = "COUNT")]
    pub requests: Option<usize>,
    #[arg(long, default_value_t = 8)]
    pub prefills: usize,
    #[arg(long, default_value_t = 8)]
    pub decodes: usize,
    #[arg(long, default_value_t = 2)]
    pub gateways: usize,
    /// How old what an agent measured is when it is used.
    #[arg(long, default_value_t = 15.0)]
    pub report_age_ms: f64,
    /// slow:WORKER:TIMES, busy:WORKER:SHARE, path:PREFILL:DECODE:SHARE or dies:WORKER, for a
    /// part of the time with @FROM-UNTIL after it. Prefills are numbered first. Repeatable.
    #[arg(long, value_name = "WHAT")]
    pub trouble: Vec<Trouble>,
    /// Goodput counts requests whose first token comes within this,
    #[arg(long, default_value_t = 5000.0)]
    pub slo_ttft_ms: f32,
    /// and whose tokens come at least this often on average.
    #[arg(long, default_value_t = 50.0)]
    pub slo_itl_ms: f32,
    /// Writes the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a chart of p99 TTFT by load as SVG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}
