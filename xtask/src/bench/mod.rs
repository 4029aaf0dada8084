//! `cargo xtask bench NAME`: the gateway beside its peers, a fleet, the core crate, or a benchmark by
//! name.

mod fleet;
mod gateway;
mod instructions;
mod load;
mod peers;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{binaries, ebpf, python, shell, workspace};

/// Benchmark to run, and how long.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Benchmark to run: `gateway` compares pd-router with nginx and sglang-router, `instructions` counts
    /// those of the gateway for one request, `fleet` compares routers before a prefill/decode fleet of real
    /// or simulated engines, `reliability` runs cases that users of routers have reported (with
    /// `-- --requests N` a soak instead), `core` runs all benchmarks of the core crate, any other name is a
    /// `[[bench]]` target.
    name: String,
    /// Number of rounds of the benchmark `gateway`. Its figures are medians over them.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Duration of each run of the benchmark `gateway`, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Another pd-router program, as of the state before a change, that the benchmarks `gateway` and
    /// `instructions` run beside this one.
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// Arguments that are passed to the `[[bench]]` target or to the benchmark `fleet`, which prints its
    /// own with `-- --help`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The benchmarks of the core crate.
const CORE: [&str; 4] = ["choose", "prefix", "frame", "splice"];

/// Runs a benchmark with the optimised profile.
///
/// # Errors
/// There is no such benchmark, or it failed.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    match flags.name.as_str() {
        "gateway" => {
            return gateway::run(flags.rounds, flags.seconds, flags.before.as_deref());
        }
        "instructions" => return instructions::run(flags.before.as_deref()),
        "fleet" => return fleet::run(&flags.rest),
        _ => {}
    }
    let mut bench = shell::command(workspace::cargo());
    let names = if flags.name == "core" { &CORE[..] } else { &[flags.name.as_str()] };
    bench.arg("bench").args(names.iter().flat_map(|name| ["--bench", name]));
    bench.arg("--").args(&flags.rest);
    if matches!(&*flags.name, "kernel" | "feedback" | "reliability") {
        let programs = binaries::build_release()?;
        bench.env("PD_ROUTER_BIN", programs.pd_router).env("SGLANG_SIM_BIN", programs.sglang_sim);
    }
    match &*flags.name {
        "kernel" | "feedback" => {
            bench.env("PD_ROUTER_EBPF_OBJECT", ebpf::build()?);
        }
        "reliability" if flags.rest.is_empty() => {
            bench.env("SGLANG_ROUTER_PYTHON", python::sglang_router()?);
        }
        _ => {}
    }
    shell::run(&mut bench)
}
