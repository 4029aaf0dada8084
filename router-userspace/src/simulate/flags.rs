//! [`SimulateFlags`]: the traffic, the fleet and the output of a simulation.

use std::path::PathBuf;

use clap::Args;
use router_simulator::{InjectedFault, Perturbation, Report};

/// Flags of `pd-router simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateFlags {
    /// Trace to replay: a file of JSON lines with timestamp, input_length, output_length and
    /// hash_ids (Mooncake's format), or a generated trace: synthetic, synthetic-short,
    /// synthetic-long or synthetic-bursts. Several, separated by commas, only with --report.
    #[arg(help_heading = TRAFFIC, long, default_value = "synthetic", value_delimiter = ',', value_name = "FILE")]
    pub trace: Vec<String>,
    /// Loads to simulate, each as a fraction of what the fleet can serve with an empty cache.
    #[arg(help_heading = TRAFFIC, long, default_value = "0.3,0.6,0.9", value_delimiter = ',', value_name = "FRACTIONS")]
    pub load: Vec<f64>,
    /// Maximum number of requests, taken from the beginning of the trace.
    #[arg(help_heading = TRAFFIC, long, value_name = "COUNT")]
    pub requests: Option<usize>,
    /// First random seed. Every policy sees the same requests with the same seed.
    #[arg(help_heading = TRAFFIC, long, default_value_t = 1)]
    pub seed: u64,
    /// Number of seeds to simulate. The printed results are the mean over all seeds.
    #[arg(help_heading = TRAFFIC, long, default_value_t = 5, value_name = "COUNT")]
    pub seeds: u64,

    /// Policies to compare, separated by commas, or `all`.
    #[arg(help_heading = FLEET, long, default_value = "all", value_delimiter = ',', value_name = "NAMES")]
    pub policies: Vec<String>,
    /// Number of prefill engines.
    #[arg(help_heading = FLEET, long, default_value_t = 8, value_name = "COUNT")]
    pub prefills: usize,
    /// Number of decode engines.
    #[arg(help_heading = FLEET, long, default_value_t = 8, value_name = "COUNT")]
    pub decodes: usize,
    /// Number of gateways. Requests are spread over them, and each knows only its own.
    #[arg(help_heading = FLEET, long, default_value_t = 2, value_name = "COUNT")]
    pub gateways: usize,
    /// Age in milliseconds of an agent's measurement when a gateway uses it, 0 to 10000.
    #[arg(help_heading = FLEET, long, default_value_t = 15.0, value_name = "MS")]
    pub report_age_ms: f64,
    /// Fault to inject: slow:WORKER:TIMES, busy:WORKER:SHARE, path:PREFILL:DECODE:SHARE or
    /// dies:WORKER. Workers are numbered from 0, prefills first. @FROM-UNTIL limits it to a part of
    /// the run, as in dies:9@0.5-1. May be repeated.
    #[arg(help_heading = FLEET, long, value_name = "FAULT")]
    pub fault: Vec<InjectedFault>,
    /// Difference between the fleet and what policies assume: assumptions:TIMES, bytes:SIGMA,
    /// conversation:SIGMA, agents:SIGMA, fixed:MS, decode:SHARE or engines:SIGMA.
    #[arg(help_heading = FLEET, long, value_name = "NAME:VALUE")]
    pub perturb: Option<Perturbation>,

    /// Maximum time to first token, in milliseconds, of a request that counts as goodput.
    #[arg(help_heading = RESULTS, long, default_value_t = 5000.0, value_name = "MS")]
    pub slo_ttft_ms: f32,
    /// Maximum mean time between tokens, in milliseconds, of a request that counts as goodput.
    #[arg(help_heading = RESULTS, long, default_value_t = 50.0, value_name = "MS")]
    pub slo_itl_ms: f32,
    /// Print a table of many simulations instead: `comparison` has predicted beside the baselines
    /// on healthy fleets, in trouble and perturbed; `sensitivity` varies each constant of predicted.
    /// Loads, policies, gateways, faults and perturbations are the report's own. --json and --plot
    /// do not go with it.
    #[arg(help_heading = RESULTS, long, conflicts_with_all = ["json", "plot"], value_name = "NAME")]
    pub report: Option<Report>,
    /// File to write the results to as JSON.
    #[arg(help_heading = RESULTS, long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// File to write a chart to as SVG: the 99th percentile of the time to first token by load.
    #[arg(help_heading = RESULTS, long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

const TRAFFIC: &str = "Traffic";
const FLEET: &str = "Fleet";
const RESULTS: &str = "Results";
