//! A real SGLang on the CPU, made ready in the user's cache folder: its environment of about
//! 6.5 GB, and a small model with random weights.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{python, shell, tools, workspace};

/// Installed without its dependencies: most are for CUDA alone.
const SGLANG: &str = "sglang==0.5.12.post1";
/// The release that its wheel is built for.
const RELEASE: &str = "3.12";
const REQUIREMENTS: &str = "tests/real-sglang/engine/requirements.txt";
const MAKE_MODEL: &str = "tests/real-sglang/engine/make_model.py";
/// Three servers of about 3 GB, and what they need for starting.
const MEMORY_KIB: u64 = 11 << 20;

/// Sets the environment variables that name SGLang and its model to the tests.
///
/// # Errors
/// This machine cannot run them, or something cannot be installed.
pub(crate) fn equip(runner: &mut Command) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("real SGLang is tested in network namespaces: root is needed");
    }
    let available = available_memory()?;
    if available < MEMORY_KIB {
        bail!("{} GiB of memory are needed, {} are free", MEMORY_KIB >> 20, available >> 20);
    }
    let python = environment()?;
    let logs = workspace::cache()?.join("real-sglang-logs");
    std::fs::create_dir_all(&logs).context("making a folder for the servers' logs")?;
    let model = model(&python)?;
    println!("SGLang's logs: {}", logs.display());
    runner
        .env("PD_ROUTER_SGLANG_PYTHON", python)
        .env("PD_ROUTER_SGLANG_MODEL", model)
        .env("PD_ROUTER_SGLANG_LOGS", logs)
        .env("PD_ROUTER_PEER_PYTHON", python::sglang_router()?);
    Ok(())
}

fn environment() -> Result<PathBuf> {
    let requirements = std::fs::read_to_string(workspace::root().join(REQUIREMENTS))
        .with_context(|| format!("reading {REQUIREMENTS}"))?;
    let wanted = format!("{requirements}{SGLANG}\n");
    let folder = workspace::kept("real-sglang", &wanted, |folder| {
        println!("installing SGLang and PyTorch: about 6.5 GB");
        shell::run(shell::command(interpreter()?).args(["-m", "venv", "--clear"]).arg(folder))?;
        let python = folder.join("bin/python");
        python::pip(&python, &["--requirement", REQUIREMENTS])?;
        python::pip(&python, &["--no-deps", SGLANG])?;
        // Servers start twice as fast. Fails on files that are no Python, such as templates.
        let mut compile = shell::command(&python);
        compile.env_remove("PYTHONDONTWRITEBYTECODE");
        compile.args(["-m", "compileall", "-qq", "-j", "2"]).arg(folder.join("lib"));
        _ = shell::output(&mut compile);
        Ok(())
    })?;
    let python = folder.join("bin/python");
    let mooncake = || shell::output(shell::command(&python).args(["-c", "import mooncake.engine"]));
    if mooncake().is_err() {
        tools::install_packages(&["libibverbs1"]).context("Mooncake lacks a library")?;
        mooncake().context("Mooncake does not load")?;
    }
    Ok(python)
}

fn model(python: &Path) -> Result<PathBuf> {
    let script = std::fs::read_to_string(workspace::root().join(MAKE_MODEL))
        .with_context(|| format!("reading {MAKE_MODEL}"))?;
    workspace::kept("real-sglang-model", &script, |folder| {
        shell::output(shell::command(python).arg(MAKE_MODEL).arg(folder)).map(drop)
    })
}

/// A Python of the wanted release: by its name, as the usual one, or among pyenv's.
fn interpreter() -> Result<PathBuf> {
    let named = ["python3.12", "python3"].into_iter().filter_map(shell::which);
    let pyenv = std::env::home_dir().map(|home| home.join(".pyenv/versions"));
    let versions = pyenv.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
    let installed = versions.flatten().map(|version| version.path().join("bin/python3"));
    let is_it = |python: &PathBuf| {
        let question = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])";
        shell::output(shell::command(python).args(["-c", question]))
            .is_ok_and(|answer| answer.trim() == RELEASE)
    };
    let found = named.chain(installed).find(is_it);
    found.with_context(|| format!("SGLang's wheel needs Python {RELEASE} with its venv module"))
}

fn available_memory() -> Result<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.context("/proc/meminfo has no MemAvailable")
}
