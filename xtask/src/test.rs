//! `cargo xtask test`: builds what the tests run, then runs them all or one suite.

use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::counts::Counts;
use crate::workspace::Binaries;
use crate::{cluster, ebpf, python, real_sglang, shell, workspace};

/// What to run of the tests.
#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// One suite; all by default.
    #[arg(value_enum)]
    suite: Option<Suite>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Tests beside the code of every crate.
    Unit,
    /// The simulated engine itself, by what was seen of real ones.
    Engine,
    /// The gateway as a process, against simulated engines.
    Gateway,
    /// The kernel half in network namespaces; needs root and BPF.
    Kernel,
    /// The gateway on a real API server, with the documents' manifests.
    Cluster,
    /// Examples in the documentation.
    Doc,
    /// The gateway before a real SGLang on the CPU. Gigabytes and minutes: only when it is named.
    RealSglang,
}

/// Runs the tests; failed ones are in the counts, not an error.
///
/// # Errors
/// Something could not be built or started.
pub(crate) fn run(flags: &Flags) -> Result<Counts> {
    let mut counts = Counts::default();
    let all =
        [Suite::Unit, Suite::Engine, Suite::Gateway, Suite::Kernel, Suite::Cluster, Suite::Doc];
    for suite in flags.suite.map_or(all.to_vec(), |only| vec![only]) {
        if suite == Suite::Kernel
            && let Some(missing) = kernel_tests_need()
        {
            println!("kernel tests left out: {missing}");
            continue;
        }
        counts += run_suite(suite, flags)?;
    }
    Ok(counts)
}

/// What the kernel tests lack here, if anything.
fn kernel_tests_need() -> Option<&'static str> {
    if !workspace::root().join("tests/kernel/main.rs").exists() {
        Some("there are none yet")
    } else if !nix::unistd::geteuid().is_root() {
        Some("they need root")
    } else if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        Some("this kernel has no BTF")
    } else {
        None
    }
}

fn run_suite(suite: Suite, flags: &Flags) -> Result<Counts> {
    let mut runner = runner(suite);
    match suite {
        // No suite selects packages: features then unify alike and nothing is built twice.
        Suite::Unit => runner.args(["--lib", "--bins"]),
        Suite::Engine => runner.args(engine_tests()?),
        Suite::Gateway => runner.args(["--test", "gateway"]),
        Suite::Kernel => runner.args(["--test", "kernel"]),
        Suite::Cluster => runner.args(["--test", "cluster"]),
        Suite::Doc => runner.arg("--doc"),
        Suite::RealSglang => runner.args(["--test", "real-sglang"]),
    };
    runner.args(&flags.filter);
    if matches!(suite, Suite::Gateway | Suite::Kernel | Suite::Cluster | Suite::RealSglang) {
        equip(&mut runner)?;
    }
    if suite == Suite::RealSglang {
        real_sglang::equip(&mut runner)?;
    }
    if suite == Suite::Kernel {
        match ebpf::build() {
            Ok(object) => _ = runner.env("PD_ROUTER_EBPF_OBJECT", object),
            // Where changes are judged, a missing tool must not pass for a passed test.
            Err(error) if std::env::var_os("CI").is_some() => return Err(error),
            Err(error) => {
                println!("kernel tests left out: {error:#}");
                return Ok(Counts::default());
            }
        }
    }
    if suite == Suite::Cluster {
        match cluster::control_plane(flags.suite == Some(suite)) {
            Ok(plane) => {
                runner
                    .env("KUBE_APISERVER_BIN", plane.kube_apiserver)
                    .env("ETCD_BIN", plane.etcd)
                    .env("KUBECTL_BIN", plane.kubectl);
            }
            Err(error) => {
                println!("cluster tests left out: {error:#}");
                return Ok(Counts::default());
            }
        }
    }
    let mut counts = Counts::default();
    let status = shell::watch(&mut runner, |line| {
        counts += Counts::of_line(line).unwrap_or_default();
    })?;
    if !status.success() && counts.failed == 0 {
        counts += Counts::FAILURE;
    }
    Ok(counts)
}

/// `--test NAME` for each test of the simulated engine.
fn engine_tests() -> Result<Vec<String>> {
    let folder = workspace::root().join("tests/sglang-sim/tests");
    let mut words = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if let (Some(name), Some("rs")) =
            (path.file_stem(), path.extension().and_then(|e| e.to_str()))
        {
            words.extend(["--test".to_owned(), name.to_string_lossy().into_owned()]);
        }
    }
    Ok(words)
}

/// Passes what a test of another package cannot ask cargo for: programs and the venv.
fn equip(runner: &mut Command) -> Result<()> {
    let Binaries { pd_router, sglang_sim } = workspace::build_binaries()?;
    runner.env("PD_ROUTER_BIN", pd_router).env("SGLANG_SIM_BIN", sglang_sim);
    match python::venv() {
        Ok(python) => _ = runner.env("PD_ROUTER_PYTHON", python),
        // The tests that need it then say so; the others still run.
        Err(error) => println!("no environment for the official client: {error:#}"),
    }
    Ok(())
}

/// cargo-nextest where it is installed (it runs each test as a process of its own), else cargo.
fn runner(suite: Suite) -> Command {
    let mut command = shell::command(workspace::cargo());
    let by_cargo_alone = matches!(suite, Suite::Doc | Suite::RealSglang);
    if !by_cargo_alone && shell::which("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--no-tests=pass", "--no-fail-fast"]);
    } else {
        command.args(["test", "--no-fail-fast"]);
    }
    command
}
