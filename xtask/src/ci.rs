//! `cargo xtask ci`: everything that a change must pass, timed, with one plain last line.

use anyhow::Result;

use crate::counts::Counts;
use crate::parts::Parts;
use crate::tools::Tool;
use crate::{demo, docs, ebpf, setup, shell, test, tidy, workspace};

const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };

/// Runs every part even after a failure, so that one run tells all.
///
/// # Errors
/// None: what goes wrong in a part counts as a failure.
pub(crate) fn run() -> Result<Counts> {
    let mut parts = Parts::default();
    parts.chore("setup", setup::run);
    parts.chore("format", format);
    parts.chore("clippy", clippy);
    parts.chore("tidy", tidy::run);
    parts.chore("licences", licences);
    test::run_into(&mut parts, &test::Flags::default());
    parts.chore("demo", || demo::run(&demo::Flags { once: true }));
    parts.chore("docs", docs::run);
    Ok(parts.told())
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
    let deny = match DENY.find() {
        Some(deny) => deny,
        // It takes minutes to build, once.
        None if test::judged() => {
            DENY.install(|command| _ = command.arg("--no-default-features"))?
        }
        None => {
            println!("left out: cargo-deny is not installed (cargo install cargo-deny)");
            return Ok(());
        }
    };
    shell::run(shell::command(deny).args(["check", "bans", "licenses", "sources"]))
}
