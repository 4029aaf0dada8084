//! `cargo xtask test`: builds what the tests run, then runs them all or one suite.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::counts::Counts;
use crate::parts::Parts;
use crate::workspace::Binaries;
use crate::{cluster, ebpf, helm, kernels, python, real_sglang, shell, workspace};

/// The tests of a program that carries the kernel half: nothing else needs it built.
const CARRIER: &str = "carrier";

/// What to run of the tests.
#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// One suite; all by default.
    #[arg(value_enum)]
    suite: Option<Suite>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Of the suite kernels: every kernel and every test, not only the oldest and the newest and
    /// what is quick.
    #[arg(long)]
    all: bool,
    /// Of suites that run the programs: those as they are shipped, and what the tests print, figures
    /// among it, though they pass.
    #[arg(long)]
    release: bool,
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
    /// The kernel half on Debian's kernels from 5.10 on, each booted under QEMU.
    Kernels,
    /// The loop from the kernel to the choice, in network namespaces; needs root and BPF.
    Feedback,
    /// The gateway on a real API server, with the documents' manifests.
    Cluster,
    /// What is in deploy/: rendered by kustomize and helm, and decoded strictly.
    Deploy,
    /// Examples in the documentation.
    Doc,
    /// The gateway before a real SGLang on the CPU. Gigabytes and minutes: only when it is named.
    RealSglang,
}

impl Suite {
    /// All but those that run only when they are named.
    const ALL: [Suite; 9] = [
        Suite::Unit,
        Suite::Engine,
        Suite::Gateway,
        Suite::Kernel,
        Suite::Kernels,
        Suite::Feedback,
        Suite::Cluster,
        Suite::Deploy,
        Suite::Doc,
    ];

    /// Those that run the programs: the others are whole by themselves.
    fn needs_programs(self) -> bool {
        !matches!(self, Suite::Unit | Suite::Engine | Suite::Deploy | Suite::Doc)
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no suite is hidden").get_name().to_owned()
    }
}

/// Runs the tests and prints what each suite took; failed ones are in the counts, not an error.
pub(crate) fn run(flags: &Flags) -> Counts {
    let mut parts = Parts::default();
    run_into(&mut parts, flags);
    parts.told()
}

/// Each suite as a part of its own.
pub(crate) fn run_into(parts: &mut Parts, flags: &Flags) {
    for suite in flags.suite.map_or(Suite::ALL.to_vec(), |only| vec![only]) {
        parts.run(&format!("test {}", suite.name()), || run_suite(suite, flags));
    }
}

/// Where changes are judged, what a suite lacks must not pass for a passed test; elsewhere it is
/// said in one line, unless the suite was asked for by name.
fn left_out(suite: Suite, flags: &Flags, missing: &anyhow::Error) -> Result<Counts> {
    if judged() || flags.suite == Some(suite) {
        bail!("{missing:#}");
    }
    println!("{} tests left out: {missing:#}", suite.name());
    Ok(Counts::default())
}

/// A CI runs this.
pub(crate) fn judged() -> bool {
    std::env::var_os("CI").is_some()
}

/// What the kernel half's tests run on.
///
/// # Errors
/// They lack something here.
fn kernel_object() -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("they need root");
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!("this kernel has no BTF");
    }
    ebpf::build()
}

fn run_suite(suite: Suite, flags: &Flags) -> Result<Counts> {
    let mut runner = runner(suite, flags);
    match suite {
        // No suite selects packages: features then unify alike and nothing is built twice.
        Suite::Unit => runner.args(["--lib", "--bins"]),
        Suite::Engine => runner.args(engine_tests()?),
        Suite::Gateway => runner.args(["--test", "gateway"]),
        Suite::Kernel => runner.args(["--test", "kernel"]),
        Suite::Kernels => {
            return kernels::run(flags.all, flags.filter.as_deref())
                .or_else(|missing| left_out(suite, flags, &missing));
        }
        Suite::Feedback => runner.args(["--test", "feedback"]),
        Suite::Cluster => runner.args(["--test", "cluster"]),
        Suite::Deploy => runner.args(["--test", "deploy"]),
        Suite::Doc => runner.arg("--doc"),
        Suite::RealSglang => runner.args(["--test", "real-sglang"]),
    };
    runner.args(&flags.filter);
    if suite == Suite::Kernel {
        // Those need a machine of their own.
        runner.args(["--", "--skip", "vm::"]);
    }
    if matches!(suite, Suite::Kernel | Suite::Feedback) {
        match kernel_object() {
            Ok(object) => equip_with(&mut runner, suite, flags, &object)?,
            Err(missing) => return left_out(suite, flags, &missing),
        }
    }
    if suite.needs_programs() {
        equip(&mut runner, flags.release)?;
    }
    if suite == Suite::RealSglang {
        real_sglang::equip(&mut runner)?;
        runner.env("PD_ROUTER_EBPF_OBJECT", ebpf::build()?);
    }
    if suite == Suite::Cluster {
        // Building one takes minutes, once: for who asks for it, and where changes are judged.
        match cluster::control_plane(judged() || flags.suite == Some(suite)) {
            Ok(plane) => {
                equip_cluster(&mut runner)?;
                runner
                    .env("KUBE_APISERVER_BIN", plane.kube_apiserver)
                    .env("ETCD_BIN", plane.etcd)
                    .env("KUBECTL_BIN", plane.kubectl);
            }
            Err(missing) => return left_out(suite, flags, &missing),
        }
    }
    if suite == Suite::Deploy {
        match cluster::kubectl().and_then(|kubectl| Ok((kubectl, helm::program()?))) {
            Ok((kubectl, helm)) => _ = runner.env("KUBECTL_BIN", kubectl).env("HELM_BIN", helm),
            Err(missing) => return left_out(suite, flags, &missing),
        }
    }
    counted(&mut runner)
}

/// Runs it and counts what it says of its tests.
fn counted(runner: &mut Command) -> Result<Counts> {
    let mut counts = Counts::default();
    let status = shell::watch(runner, |line| {
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
fn equip(runner: &mut Command, release: bool) -> Result<()> {
    let Binaries { pd_router, sglang_sim } = match release {
        true => workspace::build_release_binaries()?,
        false => workspace::build_binaries()?,
    };
    runner.env("PD_ROUTER_BIN", pd_router).env("SGLANG_SIM_BIN", sglang_sim);
    match python::venv() {
        Ok(python) => _ = runner.env("PD_ROUTER_PYTHON", python),
        // The tests that need it then say so; the others still run.
        Err(error) => println!("no environment for the official client: {error:#}"),
    }
    Ok(())
}

/// Passes the kernel half, and a program that carries it to the tests of one.
fn equip_with(runner: &mut Command, suite: Suite, flags: &Flags, object: &Path) -> Result<()> {
    runner.env("PD_ROUTER_EBPF_OBJECT", object);
    if suite == Suite::Kernel && flags.filter.as_deref().is_none_or(|text| text.contains(CARRIER)) {
        // Before the others are built, which leave in its place what the rest of the tests run.
        runner.env("PD_ROUTER_CARRIER_BIN", workspace::build_carrier(object)?);
    }
    Ok(())
}

/// What some tests on a cluster need besides: the kernel half for agents, and rules for a node's
/// connections. They are left out where these cannot be had.
fn equip_cluster(runner: &mut Command) -> Result<()> {
    let mut left_out = Vec::new();
    match kernel_object() {
        Ok(object) => _ = runner.env("PD_ROUTER_EBPF_OBJECT", object),
        Err(missing) => left_out.push(("agents::", missing)),
    }
    if let Err(missing) = cluster::node_rules() {
        left_out.push(("proxied::", missing));
    }
    for (at, (tests, missing)) in left_out.into_iter().enumerate() {
        if judged() {
            return Err(missing);
        }
        println!("{tests} of the tests of a cluster left out: {missing:#}");
        runner.args((at == 0).then_some("--")).args(["--skip", tests]);
    }
    Ok(())
}

/// cargo-nextest where it is installed (it runs each test as a process of its own), else cargo.
fn runner(suite: Suite, flags: &Flags) -> Command {
    let mut command = shell::command(workspace::cargo());
    let by_cargo_alone = matches!(suite, Suite::Doc | Suite::RealSglang);
    if !by_cargo_alone && shell::which("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--no-tests=pass", "--no-fail-fast"]);
        if judged() {
            command.args(["--profile", "ci"]);
        }
        if flags.release {
            command.args(["--success-output", "immediate"]);
        }
    } else {
        command.args(["test", "--no-fail-fast"]);
        if flags.release {
            command.env("RUST_TEST_NOCAPTURE", "1");
        }
    }
    command
}
