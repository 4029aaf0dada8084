//! `cargo xtask bench gateway`: pd-router, nginx and sglang-router before the same two engines, and one
//! engine asked directly, in interleaved rounds of one run.

use std::path::Path;

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

/// Prints the medians of all rounds, and pd-router's as a share of each peer's. `before` is another
/// build of pd-router.
///
/// # Errors
/// A build, an installation or a server fails.
pub(super) fn run(rounds: u32, seconds: u32, before: Option<&Path>) -> Result<()> {
    if shell::which("wrk").is_none() {
        tools::install_packages(&["wrk"]).context("wrk is missing")?;
    }
    let python = python::sglang_router()?;
    let programs = binaries::build_release()?;
    let folder = tempfile::tempdir()?;
    let [_prefill, _decode, direct] = peers::engines(&programs)?;
    let mut servers = vec![peers::pd_router(&programs)?];
    servers.extend(before.map(peers::other_pd_router).transpose()?);
    servers.extend([peers::nginx(folder.path())?, peers::sglang_router(&python)?, direct]);
    println!(
        "{rounds} interleaved rounds of {seconds} s; figures are medians; CPU is the server's alone\n"
    );
    println!("| load | server | requests/s | p50 us | p99 us | CPU s per 10,000 | failed |");
    println!("|---|---|---|---|---|---|---|");
    for load in LOADS {
        measure(&load, &servers, rounds, seconds)?;
    }
    for server in &servers {
        if let Some(mib) = peak_mib(server.pid()) {
            println!("\n{}: {mib} MiB peak memory", server.name);
        }
    }
    Ok(())
}

/// Loads each server in turn, the first one being pd-router, and prints a row for each and one for each
/// ratio.
fn measure(load: &Load, servers: &[Peer], rounds: u32, seconds: u32) -> Result<()> {
    let mut runs = vec![Vec::new(); servers.len()];
    for _ in 0..rounds.max(1) {
        for (server, runs) in servers.iter().zip(&mut runs) {
            runs.push(load.run(server, seconds)?);
        }
    }
    let medians: Vec<Run> = runs.iter().map(|runs| median(runs)).collect();
    for (server, run) in servers.iter().zip(&medians) {
        row(load.name, server, run);
    }
    let ours = medians[0];
    for (server, theirs) in servers.iter().zip(&medians).skip(1) {
        println!(
            "| | ratio to {} | {:.2} | {:.2} | {:.2} | {:.2} | |",
            server.name,
            ours.per_second / theirs.per_second,
            ours.p50_us / theirs.p50_us,
            ours.p99_us / theirs.p99_us,
            ours.cpu_s / theirs.cpu_s,
        );
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
