//! `cargo xtask ci`: what a change must pass, timed, with a summary as its last line, which names what was
//! left out.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::parts::{Parts, Summary};
use crate::tools::Tool;
use crate::{conformance, demo, docs, ebpf, fuzz, setup, shell, test, tidy, workspace};

const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };

/// Adds parts.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Run this part too, which takes many minutes of CPU time the first time; may be repeated.
    #[arg(long, value_enum, value_name = "PART")]
    with: Vec<Extra>,
}

/// A part that runs only if it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Extra {
    /// Each fuzz target for 20 s.
    Fuzz,
}

/// Runs every part even after a failure, so that one run shows all failures.
pub(crate) fn run(flags: &Flags) -> Summary {
    let mut parts = Parts::default();
    parts.chore("setup", setup::run);
    parts.chore("format", format);
    parts.chore("clippy", clippy);
    parts.chore("tidy", tidy::run);
    parts.chore("licences", licences);
    test::run_into(&mut parts, &test::Flags::default());
    test::run_nodes_into(&mut parts);
    parts.left_out(test::REAL_SGLANG);
    match shell::which("go") {
        Some(_) => parts.chore("conformance", conformance::check_gateway),
        None => parts.left_out("conformance"),
    }
    parts.chore("demo", || demo::run(&demo::Flags { once: true }));
    parts.chore("docs", docs::run);
    match flags.with.contains(&Extra::Fuzz) {
        true => parts.chore(fuzz::PART, fuzz::check),
        false => parts.left_out(fuzz::PART),
    }
    parts.summary()
}

fn format() -> Result<()> {
    shell::run(shell::command(workspace::cargo()).args(["fmt", "--all", "--", "--check"]))
}

/// Lints the eBPF programs apart: their panic handler clashes with the standard library's in one build. The
/// fuzz targets are empty without `--cfg fuzzing`; their laws are linted with the unit tests of their crates.
fn clippy() -> Result<()> {
    let lint = |selection: &[&str]| {
        shell::run(
            shell::command(workspace::cargo())
                .args(["clippy", "--quiet", "--locked"])
                .args(selection)
                .args(["--", "-D", "warnings"]),
        )
    };
    lint(&["--workspace", "--exclude", "router-ebpf", "--all-targets"])?;
    // No target of `--all-targets`, since cargo does not run it by itself.
    lint(&["--package", "xtask", "--test", "nodes"])?;
    ebpf::clippy()
}

/// Checks licences, bans and sources. Advisories are not checked: their database is not in a registry.
fn licences() -> Result<()> {
    let deny = DENY.get(|command| _ = command.arg("--no-default-features"))?;
    shell::run(shell::command(deny).args(["check", "bans", "licenses", "sources"]))
}
