//! The command `pd-router simulate`. The model is [`router_simulator`].

mod flags;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use router_simulator::{Contender, FleetSetup, Summary, SyntheticMix, Trace, chart, run};

pub use flags::SimulateFlags;

/// Number of requests of a synthetic trace.
const SYNTHETIC_REQUESTS: usize = 10_000;

/// Simulates every policy at every load, prints a table, and writes the requested files.
///
/// # Errors
/// Names the invalid flag or file.
pub fn simulate(flags: &SimulateFlags) -> Result<()> {
    let setup = setup(flags)?;
    let mut trace = read(&flags.trace, flags.seed)?;
    trace.arrivals.truncate(flags.requests.unwrap_or(usize::MAX));
    if trace.arrivals.is_empty() {
        bail!("--trace {}: no requests", flags.trace);
    }
    let contenders = contenders(&flags.policies)?;
    let mut runs: Vec<Summary> = Vec::new();
    for &load in &flags.load {
        for &contender in &contenders {
            eprintln!("load {load}: {}", contender.name);
            let seeds = flags.seed..flags.seed + flags.seeds;
            runs.push(run(&setup, &trace, contender, load, seeds));
        }
    }
    print!("{}", table(&runs));
    if let Some(path) = &flags.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "runs": runs }))?;
        write(path, &text)?;
    }
    if let Some(path) = &flags.plot {
        write(path, &chart(&runs))?;
    }
    Ok(())
}

fn setup(flags: &SimulateFlags) -> Result<FleetSetup> {
    if flags.prefills == 0 || flags.decodes == 0 || flags.gateways == 0 || flags.seeds == 0 {
        bail!("--prefills, --decodes, --gateways and --seeds must be at least 1");
    }
    let is_valid = |load: &f64| load.is_finite() && *load > 0.0;
    if !flags.load.iter().all(is_valid) || !(0.0..=10_000.0).contains(&flags.report_age_ms) {
        bail!("--load must be above 0, and --report-age-ms between 0 and 10000");
    }
    for fault in &flags.fault {
        let workers = flags.prefills + flags.decodes;
        if fault.worker() >= workers
            || fault.path().is_some_and(|(p, d)| p >= flags.prefills || d < flags.prefills)
        {
            bail!(
                "--fault {fault:?}: the fleet has prefills 0..{} and decodes {}..{workers}",
                flags.prefills,
                flags.prefills
            );
        }
    }
    Ok(FleetSetup {
        prefills: flags.prefills,
        decodes: flags.decodes,
        gateways: flags.gateways,
        report_age_ms: flags.report_age_ms,
        faults: flags.fault.clone(),
        targets: router_core::schedule::SloTargets {
            ttft_ms: flags.slo_ttft_ms,
            itl_ms: flags.slo_itl_ms,
        },
        ..FleetSetup::default()
    })
}

fn read(trace: &str, seed: u64) -> Result<Trace> {
    if let Ok(mix) = trace.parse::<SyntheticMix>() {
        return Ok(mix.draw(SYNTHETIC_REQUESTS, seed));
    }
    let text = std::fs::read_to_string(trace).with_context(|| format!("--trace {trace}"))?;
    Trace::parse(&text).with_context(|| format!("--trace {trace}"))
}

fn contenders(names: &[String]) -> Result<Vec<Contender>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Contender::ALL.to_vec());
    }
    let parse = |name: &String| name.parse().map_err(anyhow::Error::msg).context("--policies");
    names.iter().map(parse).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// Formats the results; times are in milliseconds.
fn table(runs: &[Summary]) -> String {
    let mut table = format!(
        "{:<16} {:>5} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {:>8} {:>8} {:>8} {:>6} {:>6}\n",
        "policy",
        "load",
        "ttft",
        "p50",
        "p90",
        "p99",
        "itl",
        "p99",
        "e2e",
        "p99",
        "good/s",
        "hit%",
        "failed"
    );
    for run in runs {
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{:<16} {:>5} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>7.1} {:>7.1} {:>8.0} {:>8.0} {:>8.2} \
             {:>6.1} {:>6.0}",
            run.policy,
            run.load,
            run.ttft_ms.mean,
            run.ttft_ms.p50,
            run.ttft_ms.p90,
            run.ttft_ms.p99,
            run.itl_ms.mean,
            run.itl_ms.p99,
            run.e2e_ms.mean,
            run.e2e_ms.p99,
            run.goodput_rps,
            run.cache_hit_rate * 100.0,
            run.failed,
        );
    }
    table
}

#[cfg(test)]
mod tests;
