//! `cargo xtask test`: builds the programs under test, then runs all suites or one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::binaries::{Binaries, Profile};
use crate::counts::Counts;
use crate::parts::{Parts, Summary};
use crate::{
    apiserver, binaries, browser, cluster, conformance, ebpf, fuzz, helm, images, kernels,
    promtool, python, real_sglang, setup, shell, tools, workspace,
};

/// Tests whose name contains this need a program with the eBPF object embedded.
const CARRIER: &str = "carrier";

/// Parts that run only where they are named, as the last line has them.
const NODES: &str = "test nodes";
pub(crate) const REAL_SGLANG: &str = "test real-sglang";

/// Selects the tests to run.
#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// Suite to run. Without it all suites run but nodes and real-sglang, and no fuzz target; the last line
    /// says so.
    #[arg(value_enum)]
    suite: Option<Suite>,
    /// Leave this suite out; may be repeated. A suite that cannot run here and is not left out this
    /// way counts as a failure.
    #[arg(long, value_enum, value_name = "SUITE", conflicts_with = "suite")]
    without: Vec<Suite>,
    /// Run only tests whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run the suite kernels on all kernels with all tests, instead of the quick tests on the oldest
    /// and the newest kernel.
    #[arg(long)]
    all: bool,
    /// Folder into which the suite page writes its pictures.
    #[arg(skip)]
    pictures: Option<PathBuf>,
    /// Test the optimised programs, and print the output of passed tests, which has their figures.
    #[arg(long)]
    release: bool,
}

impl Flags {
    /// The test that takes the pictures of the page, with the folder for them.
    pub(crate) fn pictures(folder: &Path) -> Flags {
        let (suite, filter) = (Some(Suite::Page), Some("picture".to_owned()));
        Flags { suite, filter, pictures: Some(folder.to_owned()), ..Flags::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Unit tests of every crate.
    Unit,
    /// The simulated engine against recorded behaviour of real engines.
    Engine,
    /// The gateway as a process in front of simulated engines.
    Gateway,
    /// The fleet benchmark as a process, on simulated engines in network namespaces; needs root and BPF.
    Bench,
    /// The agent and its eBPF programs in network namespaces; needs root and BPF.
    Kernel,
    /// The eBPF programs on Debian's kernels from 5.10 on, each booted under QEMU.
    Kernels,
    /// The loop from kernel counters to the choice of a pair, in network namespaces; needs root and
    /// BPF.
    Feedback,
    /// The page of the admin port in a headless Chromium, with an agent; needs root and BPF.
    Page,
    /// The gateway on a real API server, with the documents' manifests.
    Cluster,
    /// A Kubernetes cluster with nodes on this machine, started and removed; needs root. Building it
    /// takes some 20 minutes of CPU time once, so this runs only when it is named, and in ci.
    Nodes,
    /// The manifests of deploy/, rendered by kustomize and helm, and decoded strictly.
    Deploy,
    /// Examples in the documentation.
    Doc,
    /// The gateway in front of a real SGLang on the CPU. Downloads gigabytes and takes minutes, so it
    /// runs only when it is named.
    RealSglang,
}

impl Suite {
    /// The suites that run unless one is named.
    const ALL: [Suite; 11] = [
        Suite::Unit,
        Suite::Engine,
        Suite::Gateway,
        Suite::Bench,
        Suite::Kernel,
        Suite::Kernels,
        Suite::Feedback,
        Suite::Page,
        Suite::Cluster,
        Suite::Deploy,
        Suite::Doc,
    ];

    /// Whether its tests start pd-router and sglang-sim as processes.
    fn needs_programs(self) -> bool {
        !matches!(self, Suite::Unit | Suite::Engine | Suite::Nodes | Suite::Deploy | Suite::Doc)
    }

    fn name(self) -> String {
        self.to_possible_value().expect("no suite is hidden").get_name().to_owned()
    }
}

/// Runs the tests and prints what each suite took. A failed test is in the counts and not an error.
pub(crate) fn run(flags: &Flags) -> Summary {
    let mut parts = Parts::default();
    run_into(&mut parts, flags);
    if flags.suite.is_none() {
        [NODES, REAL_SGLANG, fuzz::PART].into_iter().for_each(|part| parts.left_out(part));
    }
    if let Some(filter) = flags.filter.as_deref().filter(|_| parts.ran_nothing()) {
        parts.chore("filter", || bail!("no test has {filter:?} in its name"));
    }
    parts.summary()
}

/// Runs each suite as a part of its own.
pub(crate) fn run_into(parts: &mut Parts, flags: &Flags) {
    for suite in flags.suite.map_or(Suite::ALL.to_vec(), |only| vec![only]) {
        match flags.without.contains(&suite) {
            true => parts.left_out(&format!("test {}", suite.name())),
            false => parts.run(&format!("test {}", suite.name()), || run_suite(suite, flags)),
        }
    }
}

/// Runs the suite nodes where there is a Go to build its cluster with; it is no package of Debian's.
pub(crate) fn run_nodes_into(parts: &mut Parts) {
    match shell::which("go") {
        Some(_) => run_into(parts, &Flags { suite: Some(Suite::Nodes), ..Flags::default() }),
        None => parts.left_out(NODES),
    }
}

/// Whether a CI runs this.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// Builds the object of the eBPF programs, for tests that load them.
///
/// # Errors
/// This is not root, the kernel has no BTF, or the object cannot be built here.
fn kernel_object() -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("loading eBPF programs needs root");
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!("this kernel has no BTF (/sys/kernel/btf/vmlinux)");
    }
    ebpf::build()
}

fn run_suite(suite: Suite, flags: &Flags) -> Result<Counts> {
    let mut runner = runner(suite, flags)?;
    match suite {
        // No suite selects packages: features then unify alike and nothing is built twice.
        Suite::Unit => runner.args(["--lib", "--bins"]),
        Suite::Engine => runner.args(engine_tests()?),
        Suite::Gateway => runner.args(["--test", "gateway"]),
        Suite::Bench => runner.args(["--test", "smoke"]),
        Suite::Kernel => runner.args(["--test", "kernel"]),
        Suite::Kernels => {
            return kernels::run(flags.all, flags.filter.as_deref());
        }
        Suite::Feedback => runner.args(["--test", "feedback"]),
        Suite::Page => runner.args(["--test", "page"]),
        Suite::Cluster => runner.args(["--test", "cluster"]),
        Suite::Nodes => runner.args(["--test", "nodes"]),
        Suite::Deploy => runner.args(["--test", "deploy"]),
        Suite::Doc => runner.arg("--doc"),
        Suite::RealSglang => runner.args(["--test", "real-sglang"]),
    };
    runner.args(&flags.filter);
    if suite == Suite::Kernel {
        // These need a machine of their own, and run in the suite kernels.
        runner.args(["--", "--skip", "vm::"]);
    }
    if suite == Suite::Page {
        runner.env("CHROMIUM_BIN", browser::chromium()?);
        if let Some(folder) = &flags.pictures {
            runner.env("PD_ROUTER_PICTURES", folder);
        }
    }
    if matches!(suite, Suite::Kernel | Suite::Feedback | Suite::Page) {
        equip_with(&mut runner, suite, flags, &kernel_object()?)?;
    }
    if suite.needs_programs() {
        equip(&mut runner, flags.release)?;
    }
    if suite == Suite::RealSglang {
        real_sglang::equip(&mut runner)?;
        runner.env("PD_ROUTER_EBPF_OBJECT", ebpf::build()?);
    }
    if suite == Suite::Cluster {
        let plane = apiserver::control_plane()?;
        apiserver::node_rules()?;
        runner
            .env("KUBE_APISERVER_BIN", plane.kube_apiserver)
            .env("ETCD_BIN", plane.etcd)
            .env("KUBECTL_BIN", plane.kubectl)
            .env("PD_ROUTER_EBPF_OBJECT", kernel_object()?);
    }
    if suite == Suite::Nodes {
        equip_nodes(&mut runner)?;
    }
    if suite == Suite::Bench {
        runner.env("PD_ROUTER_EBPF_OBJECT", kernel_object()?);
    }
    if suite == Suite::Deploy {
        runner.env("KUBECTL_BIN", apiserver::kubectl()?).env("HELM_BIN", helm::program()?);
        runner.env("PROMTOOL_BIN", promtool::program()?);
    }
    counted(&mut runner)
}

/// Runs the test runner and adds up its summary lines.
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

/// Returns `--test NAME` for each integration test of the simulated engine.
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

/// Sets the variables that name the programs and the Python environment; a test cannot ask cargo for
/// binaries of another package.
fn equip(runner: &mut Command, release: bool) -> Result<()> {
    let Binaries { pd_router, sglang_sim, .. } = match release {
        true => binaries::build_release()?,
        false => binaries::build()?,
    };
    runner.env("PD_ROUTER_BIN", pd_router).env("SGLANG_SIM_BIN", sglang_sim);
    runner.env("PD_ROUTER_PYTHON", python::venv()?);
    Ok(())
}

/// Makes what is installed on a cluster with nodes, and sets the variables that name it.
fn equip_nodes(runner: &mut Command) -> Result<()> {
    cluster::ready()?;
    // docs/operate/install.md uses it.
    if shell::which("jq").is_none() {
        tools::install_packages(&["jq"])?;
    }
    for (variable, name) in [
        ("GATEWAY_IMAGE", images::Name::Gateway),
        ("AGENT_IMAGE", images::Name::Agent),
        ("SGLANG_SIM_IMAGE", images::Name::SglangSim),
    ] {
        runner.env(variable, images::make(name, Profile::Dev)?);
    }
    runner
        .env("FLEET_BENCH_BIN", binaries::build()?.fleet_bench)
        .env("GATEWAY_API_DEFINITIONS", conformance::definitions()?)
        .env("HELM_BIN", helm::program()?);
    Ok(())
}

/// Sets the variables that name the eBPF object and, for the tests of it, the program with that object
/// embedded.
fn equip_with(runner: &mut Command, suite: Suite, flags: &Flags, object: &Path) -> Result<()> {
    runner.env("PD_ROUTER_EBPF_OBJECT", object);
    if suite == Suite::Kernel && flags.filter.as_deref().is_none_or(|text| text.contains(CARRIER)) {
        // First, because the other builds put their own executable in its place.
        runner.env("PD_ROUTER_CARRIER_BIN", binaries::build_carrier(object)?);
    }
    Ok(())
}

/// The test runner: cargo-nextest, which runs each test as a process of its own and bounds its time.
/// It runs no examples of documentation, and the tests of real engines share one fleet in a process.
fn runner(suite: Suite, flags: &Flags) -> Result<Command> {
    if matches!(suite, Suite::Doc | Suite::RealSglang) {
        let mut command = shell::command(workspace::cargo());
        command.args(["test", "--no-fail-fast"]);
        if flags.release {
            command.env("RUST_TEST_NOCAPTURE", "1");
        }
        return Ok(command);
    }
    let mut command = shell::command(setup::nextest()?);
    command.args(["nextest", "run", "--no-tests=pass", "--no-fail-fast"]);
    if is_ci() {
        command.args(["--profile", "ci"]);
    }
    if flags.release {
        command.args(["--success-output", "immediate"]);
    }
    Ok(command)
}
