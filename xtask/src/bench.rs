//! `cargo xtask bench NAME`: the benchmarks of the workspace's crates, by name.

use anyhow::Result;
use clap::Args;

use crate::{shell, workspace};

/// Which benchmark.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Name of a `[[bench]]` target.
    name: String,
    /// Passed on to the benchmark.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs it with the optimised profile.
///
/// # Errors
/// There is no such benchmark, or it failed.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    shell::run(
        shell::command(workspace::cargo())
            .args(["bench", "--bench", &flags.name, "--"])
            .args(&flags.rest),
    )
}
