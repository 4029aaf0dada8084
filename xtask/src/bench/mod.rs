//! `cargo xtask bench NAME`: the gateway beside its peers, all pure rooms, or a benchmark by name.

mod gateway;
mod load;
mod peers;

use anyhow::Result;
use clap::Args;

use crate::{ebpf, shell, workspace};

/// Which benchmark.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// `gateway`, `core` (all of the pure rooms), or the name of a `[[bench]]` target.
    name: String,
    /// Rounds of `gateway`; the figures are their medians.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each run of `gateway`.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Passed on to the benchmark of a crate.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The benchmarks of the pure rooms.
const CORE: [&str; 4] = ["choose", "prefix", "frame", "splice"];

/// Runs it with the optimised profile.
///
/// # Errors
/// There is no such benchmark, or it failed.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    if flags.name == "gateway" {
        return gateway::run(flags.rounds, flags.seconds);
    }
    let mut bench = shell::command(workspace::cargo());
    let names = if flags.name == "core" { &CORE[..] } else { &[flags.name.as_str()] };
    bench.arg("bench").args(names.iter().flat_map(|name| ["--bench", name]));
    bench.arg("--").args(&flags.rest);
    if matches!(&*flags.name, "kernel" | "feedback") {
        let binaries = workspace::build_release_binaries()?;
        bench.env("PD_ROUTER_BIN", binaries.pd_router).env("SGLANG_SIM_BIN", binaries.sglang_sim);
        bench.env("PD_ROUTER_EBPF_OBJECT", ebpf::build()?);
    }
    shell::run(&mut bench)
}
