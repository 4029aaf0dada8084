//! `cargo xtask ci`: everything that a change must pass, timed, with one plain last line.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::counts::Counts;
use crate::{demo, docs, ebpf, setup, shell, test, tidy, workspace};

/// One part: its name, how long it took, what it counted.
struct Part {
    name: &'static str,
    took: Duration,
    counts: Counts,
}

/// Runs every part even after a failure, so that one run tells all.
///
/// # Errors
/// None: what goes wrong in a part counts as a failure.
pub(crate) fn run() -> Result<Counts> {
    let parts = [
        part("setup", || setup::run().map(|()| Counts::default())),
        part("format", || format().map(|()| Counts::default())),
        part("clippy", || clippy().map(|()| Counts::default())),
        part("tidy", || tidy::run().map(|()| Counts::default())),
        part("licences", || licences().map(|()| Counts::default())),
        part("tests", || test::run(&test::Flags::default())),
        part("demo", || demo::run(&demo::Flags { once: true }).map(|()| Counts::default())),
        part("docs", || docs::run().map(|()| Counts::default())),
    ];
    let mut total = Counts::default();
    println!();
    for Part { name, took, counts } in &parts {
        let verdict = if counts.failed == 0 { "ok" } else { "FAILED" };
        println!("{name:<10} {:>7.1} s  {verdict}", took.as_secs_f64());
        total += *counts;
    }
    Ok(total)
}

fn part(name: &'static str, run: impl FnOnce() -> Result<Counts>) -> Part {
    println!("== {name}");
    let start = Instant::now();
    let counts = run().unwrap_or_else(|error| {
        println!("{name}: {error:#}");
        Counts::FAILURE
    });
    Part { name, took: start.elapsed(), counts }
}

fn format() -> Result<()> {
    shell::run(shell::command(workspace::cargo()).args(["fmt", "--all", "--", "--check"]))
}

/// The kernel half apart: its panic handler clashes with the standard library's in one build.
fn clippy() -> Result<()> {
    let lint = |selection: &[&str]| {
        shell::run(
            shell::command(workspace::cargo())
                .args(["clippy", "--quiet", "--locked"])
                .args(selection)
                .args(["--", "-D", "warnings"]),
        )
    };
    lint(&["--all-targets"])?;
    ebpf::clippy()
}

/// Advisories need a network of their own, so only what can be decided offline.
fn licences() -> Result<()> {
    if shell::which("cargo-deny").is_none() {
        println!("left out: cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    shell::run(
        shell::command(workspace::cargo()).args(["deny", "check", "bans", "licenses", "sources"]),
    )
}
