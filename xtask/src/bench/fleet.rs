//! `cargo xtask bench fleet`: routers before a prefill/decode fleet, by the program `fleet-bench`.

use anyhow::Result;

use crate::{binaries, ebpf, shell};

/// Passes the arguments on, with the optimised programs.
///
/// # Errors
/// A build or the benchmark fails.
pub(super) fn run(rest: &[String]) -> Result<()> {
    let programs = binaries::build_release()?;
    let mut bench = shell::command(programs.fleet_bench);
    bench.env("PD_ROUTER_BIN", programs.pd_router).env("SGLANG_SIM_BIN", programs.sglang_sim);
    if rest.iter().any(|word| word.ends_with("+agent")) {
        bench.env("PD_ROUTER_EBPF_OBJECT", ebpf::build()?);
    }
    shell::run(bench.arg("run").args(rest))
}
