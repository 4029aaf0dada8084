//! `cargo xtask build-ebpf`: the object of the eBPF programs. That takes a [`Toolchain`], since core is
//! built for the target, and bpf-linker.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::nightly::Toolchain;
use crate::tools::{self, Tool};
use crate::{shell, workspace};

const LINKER: Tool = Tool { name: "bpf-linker", version: "0.13.0" };
/// What the eBPF tests run, and the Debian package of each.
const TEST_PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("bpftool", "bpftool")];
const TARGET: &str = "bpfel-unknown-none";

/// Where the object is after a build.
pub(crate) fn object() -> PathBuf {
    workspace::target().join(TARGET).join("ebpf/router-ebpf")
}

/// Builds the object and prints where it is, after installing the toolchain where it is missing.
///
/// # Errors
/// The toolchain cannot be installed here, or the programs do not build.
pub(crate) fn build() -> Result<PathBuf> {
    setup()?;
    shell::run(&mut cargo("build")?)?;
    let object = object();
    println!("eBPF object: {}", object.display());
    Ok(object)
}

/// Lints the eBPF programs for their own target: their assembly exists for no other.
///
/// # Errors
/// As [`build`], or clippy finds something.
pub(crate) fn clippy() -> Result<()> {
    setup()?;
    shell::run(cargo("clippy")?.args(["--quiet", "--", "-D", "warnings"]))
}

/// Finds or installs the toolchain and the linker, and prints one line for each choice.
///
/// # Errors
/// Something is missing and cannot be installed here.
pub(crate) fn setup() -> Result<()> {
    let toolchain = Toolchain::get()?;
    println!("eBPF compiler: {}", toolchain.rustc().display());
    let linker = match LINKER.find() {
        Some(linker) => linker,
        None => install_linker(&toolchain)?,
    };
    println!("{}: {}", LINKER.name, linker.display());
    for (program, package) in TEST_PROGRAMS {
        if shell::which(program).is_none() {
            tools::install_packages(&[package]).context("the eBPF tests need it")?;
        }
    }
    Ok(())
}

/// A cargo command on the eBPF programs, up to its own arguments.
fn cargo(verb: &str) -> Result<Command> {
    let toolchain = Toolchain::find().context("no compiler for eBPF: run `cargo xtask setup`")?;
    let linker = LINKER.find().context("no bpf-linker: run `cargo xtask setup`")?;
    let mut command = toolchain.command(toolchain.cargo())?;
    command
        .args([verb, "--locked", "--package", "router-ebpf", "--profile", "ebpf"])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        // BTF gives maps and fields their names in bpftool.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", "-C link-arg=--btf");
    Ok(command)
}

/// bpf-linker links with the LLVM of the compiler whose output it reads.
fn install_linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let version = toolchain.llvm_version()?;
    let prefix = format!("/usr/lib/llvm-{version}");
    if !Path::new(&prefix).join("include").exists() {
        let packages = [format!("llvm-{version}-dev"), format!("libpolly-{version}-dev")];
        tools::install_packages(&packages.each_ref().map(String::as_str))?;
    }
    LINKER.install(|command| {
        let llvm = format!("llvm-{version}");
        command.args(["--no-default-features", "--features", &llvm]).env("LLVM_PREFIX", &prefix);
    })
}
