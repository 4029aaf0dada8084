//! The programs of the guests, linked statically: their userland is not this machine's.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{binaries, ebpf, shell, workspace};

/// Files of the guests that this workspace builds.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) pd_router: Vec<u8>,
    pub(super) sglang_sim: Vec<u8>,
    /// The eBPF tests.
    pub(super) tests: Vec<u8>,
    /// The eBPF programs.
    pub(super) object: Vec<u8>,
}

/// Builds them.
///
/// # Errors
/// A build fails, or there is no toolchain for eBPF.
pub(super) fn programs() -> Result<Programs> {
    let read =
        |path: PathBuf| std::fs::read(&path).with_context(|| format!("reading {}", path.display()));
    Ok(Programs {
        object: read(ebpf::build()?)?,
        tests: read(linked(&["--test", "kernel"])?)?,
        pd_router: read(linked(&["--example", "static-pd-router"])?)?,
        sglang_sim: read(linked(&["--example", "static-sglang-sim"])?)?,
    })
}

/// Links one target statically; what it is made of is shared with the other builds, because the
/// flag is the last step's alone.
fn linked(target: &[&str]) -> Result<PathBuf> {
    let output = shell::command(workspace::cargo())
        .args(["rustc", "--package", "router-tests"])
        .args(target)
        .args(["--message-format", "json-render-diagnostics", "--"])
        // The linker warns that glibc's resolver is not static; no name is resolved in a guest.
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=debuginfo",
            "-A",
            "linker_messages",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("linking {} statically failed", target.join(" "));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    binaries::executable(&messages, target[1]).context("cargo names no executable")
}
