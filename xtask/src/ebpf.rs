//! `cargo xtask build-ebpf`: the object of the eBPF programs, with a toolchain that can build it.
//!
//! That takes a compiler with the standard library's source (core is built for the target) and
//! bpf-linker. rustup's nightly with rust-src is the usual one; Debian's rustc-web is another.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tools::{self, Tool};
use crate::{shell, workspace};

const LINKER: Tool = Tool { name: "bpf-linker", version: "0.13.0" };
/// What the eBPF tests run, and the Debian package of each.
const TEST_PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("bpftool", "bpftool")];
const TARGET: &str = "bpfel-unknown-none";

/// A compiler that can build core for another target.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// A stable compiler needs leave for `-Z`.
    stable: bool,
}

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
    let toolchain = match toolchain() {
        Some(toolchain) => toolchain,
        None => {
            tools::install_packages(&["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"])
                .context("building eBPF needs `rustup toolchain install nightly -c rust-src`")?;
            toolchain().context("there is still no compiler with the standard library's source")?
        }
    };
    println!("eBPF compiler: {}", toolchain.rustc.display());
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
    let toolchain = toolchain().context("no compiler for eBPF: run `cargo xtask setup`")?;
    let linker = LINKER.find().context("no bpf-linker: run `cargo xtask setup`")?;
    let mut command = shell::command(&toolchain.cargo);
    command
        .args([verb, "--locked", "--package", "router-ebpf", "--profile", "ebpf"])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        // BTF gives maps and fields their names in bpftool.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", "-C link-arg=--btf")
        .env("PATH", path_with(&toolchain)?)
        .env_remove("RUSTUP_TOOLCHAIN");
    if toolchain.stable {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    Ok(command)
}

/// The toolchain's own folder first, so that cargo finds its clippy and not rustup's.
fn path_with(toolchain: &Toolchain) -> Result<std::ffi::OsString> {
    let own = toolchain.cargo.parent().context("cargo stands in a folder")?.to_owned();
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(own).chain(std::env::split_paths(&rest));
    std::env::join_paths(folders).context("putting PATH together")
}

fn toolchain() -> Option<Toolchain> {
    let rustup = |tool: &str| {
        let found = shell::output(
            shell::command("rustup").args(["which", "--toolchain"]).args(["nightly", tool]),
        );
        found.ok().map(|path| PathBuf::from(path.trim()))
    };
    let nightly = rustup("rustc").zip(rustup("cargo")).map(|(rustc, cargo)| (cargo, rustc, false));
    let debian = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"), true);
    nightly
        .into_iter()
        .chain([debian])
        .map(|(cargo, rustc, stable)| Toolchain { cargo, rustc, stable })
        .find(|toolchain| toolchain.cargo.is_file() && has_source(&toolchain.rustc))
}

fn has_source(rustc: &Path) -> bool {
    let sysroot = shell::output(
        shell::command(rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN"),
    );
    sysroot.is_ok_and(|sysroot| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").exists()
    })
}

/// bpf-linker links with the LLVM of the compiler whose output it reads.
fn install_linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let version = llvm_version(&toolchain.rustc)?;
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

fn llvm_version(rustc: &Path) -> Result<String> {
    let version = shell::output(shell::command(rustc).arg("-vV").env_remove("RUSTUP_TOOLCHAIN"))?;
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    match line.and_then(|version| version.split('.').next()) {
        Some(major) => Ok(major.to_owned()),
        None => bail!("{} does not name its LLVM", rustc.display()),
    }
}
