//! `cargo xtask setup`: finds or installs what a fresh machine lacks, through its package managers.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tools::{self, Tool};
use crate::{ebpf, python, shell};

/// Runs each test as a process of its own, with a time limit.
const NEXTEST: Tool = Tool { name: "cargo-nextest", version: "0.9.151" };

/// A program that building or testing needs, and the Debian packages that bring it.
struct Need {
    program: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
}

const NEEDS: [Need; 3] = [
    Need { program: "cc", packages: &["gcc", "libc6-dev"], purpose: "crates that build C" },
    Need { program: "curl", packages: &["curl"], purpose: "the documents' request" },
    Need {
        program: "python3",
        packages: &["python3", "python3-venv"],
        purpose: "the official client's tests",
    },
];

/// Finds or installs each need, and prints in one line which is used.
///
/// # Errors
/// Something is missing and cannot be installed here.
pub(crate) fn run() -> Result<()> {
    for need in &NEEDS {
        let path = match shell::which(need.program) {
            Some(path) => path,
            None => {
                tools::install_packages(need.packages)
                    .with_context(|| format!("{} is missing ({})", need.program, need.purpose))?;
                shell::which(need.program)
                    .with_context(|| format!("{} is still missing", need.program))?
            }
        };
        println!("{}: {} ({})", need.program, path.display(), need.purpose);
    }
    println!("venv: {} (openai's Python client)", python::venv()?.display());
    println!("test runner: {}", nextest()?.display());
    if let Err(error) = ebpf::setup() {
        // The gateway builds and serves without it.
        println!("eBPF programs: cannot be built here, so the agent cannot either: {error:#}");
    }
    Ok(())
}

/// Finds the test runner, or builds it.
///
/// # Errors
/// It is missing and does not build here.
pub(crate) fn nextest() -> Result<PathBuf> {
    NEXTEST.get(|command| {
        command.args(["--no-default-features", "--features", "default-no-update"]);
    })
}
