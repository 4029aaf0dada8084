//! One run of load before OpenAI endpoints that exist.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::client::Client;
use crate::load;
use crate::record::Run;
use crate::table;
use crate::workload::{Cell, WorkFlags, Workloads};

const ANSWER: Duration = Duration::from_secs(60);

/// Where to send which load.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// URL of an endpoint, without /v1. May be repeated: requests are spread over all.
    #[arg(long, value_name = "URL", required = true)]
    url: Vec<String>,
    /// WORKLOAD:RATE in requests per second, with docs or trace as workload.
    #[arg(long, value_name = "WORKLOAD:RATE", default_value = "docs:4")]
    cell: Cell,
    /// Duration, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 25.0)]
    seconds: f64,
    /// Beginning that is not counted, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    warm_up: f64,
    /// Number of the round. Each number has requests of its own.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    round: u32,
    /// Name of what is measured, in the result.
    #[arg(long, value_name = "NAME", default_value = "endpoint")]
    name: String,
    /// Number of what is measured among what is compared; 0 is the reference of ratios.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    position: usize,
    /// Model name of the requests. The default is the first that the endpoint lists.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// File with the API key of the endpoint.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Time for one response, in seconds. A request that takes longer is an error.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    request_timeout: u64,
    /// File that gets the line of JSON as well.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    work: WorkFlags,
}

/// Sends the load, and prints a line of JSON on stdout and a summary on stderr.
///
/// # Errors
/// A flag is wrong, or the endpoint answers nothing at all.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let mut workloads = Workloads::new(&flags.work, std::slice::from_ref(&flags.cell))?;
    workloads.check(&flags.cell, flags.seconds)?;
    let key = flags.api_key_file.as_ref().map(|file| {
        let read = std::fs::read_to_string(file);
        read.with_context(|| format!("--api-key-file {}", file.display()))
    });
    let key = key.transpose()?;
    let urls: Vec<String> =
        flags.url.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
    crate::runtime()?.block_on(async {
        let client = Client::new(key.as_deref().map(str::trim));
        let model = match &flags.model {
            Some(model) => model.clone(),
            None => client.model(&urls[0], ANSWER).await?,
        };
        workloads.words.measure(&client, &urls[0], &model, ANSWER).await?;
        let requests = workloads.requests(&flags.cell, flags.round, flags.seconds);
        let limit = Duration::from_secs(flags.request_timeout);
        let load = load::run(&client, &urls, &model, &requests, limit).await?;
        let run = Run {
            round: flags.round,
            cell: flags.cell.to_string(),
            router: flags.name.clone(),
            position: flags.position,
            gateways: urls.len(),
            warm_up_s: flags.warm_up,
            wall_s: load.wall.as_secs_f64(),
            late_ms: load.late.as_secs_f64() * 1e3,
            gateway_cpu_ms: None,
            gateway_peak_mib: None,
            prompt_tokens: None,
            cached_tokens: None,
            requests: load.samples,
        };
        eprintln!("{}", table::one_line(&run));
        println!("{}", serde_json::to_string(&run).context("a run as JSON")?);
        flags.out.as_ref().map_or(Ok(()), |out| run.append_to(out))
    })
}
