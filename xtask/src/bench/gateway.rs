//! `cargo xtask bench gateway`: pd-router and sglang-router before the same two engines, in
//! interleaved rounds of one run.

use anyhow::{Context, Result};

use super::load::{Load, Run, peak_mib};
use super::peers::{self, Peer};
use crate::{binaries, python, shell, tools};

const LOADS: [Load; 6] = [
    Load { name: "1 connection", connections: 1, size: 0, tokens: 8, stream: false },
    Load { name: "16 connections", connections: 16, size: 0, tokens: 8, stream: false },
    Load { name: "64 connections", connections: 64, size: 0, tokens: 8, stream: false },
    Load { name: "64 KB prompts, 16", connections: 16, size: 64 << 10, tokens: 8, stream: false },
    Load { name: "1 MB prompts, 16", connections: 16, size: 1 << 20, tokens: 8, stream: false },
    Load { name: "streams of 200, 64", connections: 64, size: 0, tokens: 200, stream: true },
];

/// Prints the medians of all rounds, and pd-router's as a share of the peer's.
///
/// # Errors
/// A build, an installation or a server fails.
pub(super) fn run(rounds: u32, seconds: u32) -> Result<()> {
    if shell::which("wrk").is_none() {
        tools::install_packages(&["wrk"]).context("wrk is missing")?;
    }
    let python = python::sglang_router()?;
    let programs = binaries::build_release()?;
    let [_prefill, _decode, direct] = peers::engines(&programs)?;
    let ours = peers::pd_router(&programs)?;
    let theirs = peers::sglang_router(&python)?;
    let servers = [&direct, &ours, &theirs];
    println!(
        "{rounds} interleaved rounds of {seconds} s; figures are medians; CPU is the server's alone\n"
    );
    println!("| load | server | requests/s | p50 us | p99 us | CPU s per 10,000 | failed |");
    println!("|---|---|---|---|---|---|---|");
    for load in LOADS {
        let mut runs = servers.map(|_| Vec::new());
        for _ in 0..rounds.max(1) {
            for (server, runs) in servers.iter().zip(&mut runs) {
                runs.push(load.run(&server.address, server.pid(), seconds)?);
            }
        }
        let medians = runs.map(|runs| median(&runs));
        for (server, run) in servers.iter().zip(&medians) {
            row(load.name, server, run);
        }
        let [_, ours, theirs] = medians;
        println!(
            "| | ratio to sglang-router | {:.2} | {:.2} | {:.2} | {:.2} | |",
            ours.per_second / theirs.per_second,
            ours.p50_us / theirs.p50_us,
            ours.p99_us / theirs.p99_us,
            ours.cpu_s / theirs.cpu_s,
        );
    }
    for server in [&ours, &theirs] {
        if let Some(mib) = peak_mib(server.pid()) {
            println!("\n{}: {mib} MiB peak memory", server.name);
        }
    }
    Ok(())
}

fn row(load: &str, server: &Peer, run: &Run) {
    println!(
        "| {load} | {} | {:.0} | {:.0} | {:.0} | {:.2} | {} |",
        server.name, run.per_second, run.p50_us, run.p99_us, run.cpu_s, run.errors
    );
}

/// The median of each figure.
fn median(runs: &[Run]) -> Run {
    let of = |figure: fn(&Run) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Run {
        per_second: of(|run| run.per_second),
        p50_us: of(|run| run.p50_us),
        p99_us: of(|run| run.p99_us),
        cpu_s: of(|run| run.cpu_s),
        errors: runs.iter().map(|run| run.errors).sum(),
    }
}
