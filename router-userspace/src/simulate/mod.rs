//! The command `pd-router simulate`. The model is [`router_simulator`].

mod flags;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use router_simulator::{Contender, FleetSetup, Summary, SyntheticMix, Trace, chart, run};

pub use flags::SimulateFlags;

/// Number of requests of a synthetic trace.
const SYNTHETIC_REQUESTS: usize = 10_000;

/// Maximum number of engines of a role, of gateways and of seeds. Memory and time grow with each.
const MAX_COUNT: u64 = 10_000;
/// Maximum first seed: the seeds after it are numbers of 64 bits too.
const MAX_SEED: u64 = u64::MAX - MAX_COUNT;
/// Loads that can be simulated. The times of a trace are divided by the load.
const LOADS: std::ops::RangeInclusive<f64> = 0.001..=1000.0;

/// Simulates every policy at every load, prints a table, and writes the requested files.
///
/// # Errors
/// Names the invalid flag or file.
pub fn simulate(flags: &SimulateFlags) -> Result<()> {
    let setup = setup(flags)?;
    let mut traces = Vec::new();
    for name in &flags.trace {
        let mut trace = read(name, flags.seed)?;
        trace.arrivals.truncate(flags.requests.unwrap_or(usize::MAX));
        if trace.arrivals.is_empty() {
            bail!("--trace {name}: no requests");
        }
        traces.push((name.clone(), trace));
    }
    let seeds = flags.seed..flags.seed.saturating_add(flags.seeds);
    if let Some(report) = flags.report {
        if (setup.prefills, setup.decodes) != (8, 8) {
            bail!("--report requires --prefills 8 and --decodes 8: its faults name their workers");
        }
        let table = report.table(&setup, &traces, seeds);
        print!("{}", table.map_err(anyhow::Error::msg).context("--report")?);
        return Ok(());
    }
    let [(_, trace)] = &traces[..] else { bail!("--trace: several traces require --report") };
    let contenders = contenders(&flags.policies)?;
    let mut runs: Vec<Summary> = Vec::new();
    for &load in &flags.load {
        for &contender in &contenders {
            eprintln!("load {load}: {}", contender.name);
            runs.push(run(&setup, trace, contender, load, seeds.clone()));
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
    let counts = [
        ("--prefills", flags.prefills as u64),
        ("--decodes", flags.decodes as u64),
        ("--gateways", flags.gateways as u64),
        ("--seeds", flags.seeds),
    ];
    for (flag, value) in counts {
        if !(1..=MAX_COUNT).contains(&value) {
            bail!("{flag} is {value}: it must be between 1 and {MAX_COUNT}");
        }
    }
    if flags.seed > MAX_SEED {
        bail!("--seed is {}: it must be at most {MAX_SEED}", flags.seed);
    }
    if let Some(load) = flags.load.iter().find(|load| !LOADS.contains(load)) {
        bail!("--load is {load}: it must be between {} and {}", LOADS.start(), LOADS.end());
    }
    if !(0.0..=10_000.0).contains(&flags.report_age_ms) {
        bail!("--report-age-ms is {}: it must be between 0 and 10000", flags.report_age_ms);
    }
    for (flag, value) in [("--slo-ttft-ms", flags.slo_ttft_ms), ("--slo-itl-ms", flags.slo_itl_ms)]
    {
        if !(value > 0.0 && value.is_finite()) {
            bail!("{flag} is {value}: it must be above 0");
        }
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
        perturbation: flags.perturb.unwrap_or_default(),
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
