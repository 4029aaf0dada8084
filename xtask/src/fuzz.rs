//! `cargo xtask fuzz`: builds the fuzz targets with cargo-fuzz and runs them.
//!
//! They are optimised, with checks of overflows and debug assertions. A run starts from the committed seeds
//! and from what earlier runs have kept in the target folder.

mod stats;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::stats::RunStats;
use crate::nightly::Toolchain;
use crate::steps::step;
use crate::tools::Tool;
use crate::{shell, workspace};

const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };
/// Maximum size of an input in bytes.
const MAX_LEN: usize = 4096;
/// Maximum time for one input, in seconds. Inputs are small, so what takes this long is not linear.
const TIMEOUT: u32 = 10;
/// Maximum memory of a run in MiB. What a target leaks grows over this.
const MAX_MEMORY: u32 = 768;
/// The name of the part in ci.
pub(crate) const PART: &str = "fuzz";
/// Seconds of each target in ci.
const CI_SECONDS: u64 = 20;

/// What to run, and how long.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Targets to run; without them all, one after the other.
    #[arg(value_enum)]
    targets: Vec<FuzzTarget>,
    /// Number of inputs that each target is run on, over all jobs, such as 100000 or 1e7.
    #[arg(long, conflicts_with = "seconds", value_parser = number)]
    runs: Option<u64>,
    /// Duration of each target, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Number of processes that run a target at once.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// Run one target on this file alone, such as the input of a failure.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Reads a whole number, also as `1e7`. libFuzzer counts to 2^31.
fn number(text: &str) -> Result<u64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (1.0..2e9).contains(number));
    let number = number.filter(|number| number.fract() == 0.0);
    number
        .map(|number| number as u64)
        .ok_or_else(|| "must be from 1 to 2e9, such as 1e7".to_owned())
}

/// The fuzz targets: `router-userspace/fuzz/fuzz_targets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FuzzTarget {
    /// Heads of requests.
    Head,
    /// Bodies of requests.
    Request,
    /// Compressed bodies.
    Coding,
    /// Streams of server-sent events of engines.
    Event,
    /// Other answers of engines.
    Answer,
    /// Load frames of agents.
    Frame,
    /// Files of manifests.
    Manifest,
}

impl FuzzTarget {
    fn name(self) -> String {
        self.to_possible_value().expect("no target is hidden").get_name().to_owned()
    }

    /// Whether its law is of the crate pd-router, which takes minutes to build.
    fn is_of_gateway(self) -> bool {
        matches!(self, FuzzTarget::Head | FuzzTarget::Coding | FuzzTarget::Manifest)
    }
}

/// Builds and runs the targets, and prints a table of what they did.
///
/// # Errors
/// A target does not build, or an input violated its law, took too long or too much memory.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    ensure!(flags.jobs > 0, "--jobs must be at least 1");
    let targets = match flags.targets[..] {
        [] => FuzzTarget::value_variants().to_vec(),
        ref some => some.to_vec(),
    };
    if let Some(input) = &flags.input {
        let [target] = targets[..] else { bail!("--input needs one target") };
        let input = input.canonicalize().with_context(|| format!("--input {}", input.display()))?;
        return shell::run(shell::command(build(target)?).arg(input));
    }
    let limit = match flags.runs {
        Some(runs) => Limit::Runs(runs),
        None => Limit::Time(Duration::from_secs(flags.seconds)),
    };
    run_all(&targets, limit, flags.jobs)
}

/// Runs every target for a short time.
///
/// # Errors
/// As [`run`].
pub(crate) fn check() -> Result<()> {
    run_all(FuzzTarget::value_variants(), Limit::Time(Duration::from_secs(CI_SECONDS)), 1)
}

/// How long a target runs.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Runs(u64),
    Time(Duration),
}

fn run_all(targets: &[FuzzTarget], limit: Limit, jobs: u64) -> Result<()> {
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for &target in targets {
        let name = target.name();
        let program = step(&format!("building {name}"), || build(target))?;
        let ran = step(&format!("running {name}"), || run_target(&name, &program, limit, jobs))?;
        rows.push(format!("{name:<9} {ran}"));
        failures.extend(ran.failure.map(|failure| format!("{name}: {failure}")));
    }
    println!("\n{:<9} {}", "target", stats::HEADER);
    rows.iter().for_each(|row| println!("{row}"));
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Builds a target and returns its program.
fn build(target: FuzzTarget) -> Result<PathBuf> {
    let toolchain = Toolchain::get()?;
    let cargo_fuzz = CARGO_FUZZ.get(|_| {})?;
    let folder = workspace::target().join("fuzz");
    let mut build = toolchain.command(cargo_fuzz)?;
    build
        // cargo passes its subcommands their own name.
        .args(["fuzz", "build", "--sanitizer", "none", "--target-dir"])
        .arg(&folder)
        .args((!target.is_of_gateway()).then_some("--no-default-features"))
        .arg(target.name())
        .current_dir(fuzz_folder())
        // Linking is most of the build, and a target runs as fast without.
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    shell::run(&mut build)?;
    let programs = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    // The folder between is named by this machine's target.
    let program = programs
        .filter_map(|entry| Some(entry.ok()?.path().join("release").join(target.name())))
        .find(|program| program.is_file());
    program.with_context(|| format!("cargo-fuzz built no {}", target.name()))
}

fn fuzz_folder() -> PathBuf {
    workspace::root().join("router-userspace/fuzz")
}

/// Runs the jobs of one target to their end.
fn run_target(name: &str, program: &Path, limit: Limit, jobs: u64) -> Result<RunStats> {
    let kept = workspace::target().join("fuzz/corpus").join(name);
    let failed = fuzz_folder().join("artifacts").join(name);
    for folder in [&kept, &failed] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let start = Instant::now();
    let job = |_| {
        let mut command = shell::command(program);
        command
            .args([&kept, &fuzz_folder().join("corpus").join(name)])
            .args([format!("-max_len={MAX_LEN}"), format!("-timeout={TIMEOUT}")])
            .args([format!("-rss_limit_mb={MAX_MEMORY}"), "-print_final_stats=1".to_owned()])
            .arg(format!("-artifact_prefix={}/", failed.display()));
        match limit {
            Limit::Runs(runs) => command.arg(format!("-runs={}", runs.div_ceil(jobs))),
            Limit::Time(time) => command.arg(format!("-max_total_time={}", time.as_secs())),
        };
        run_job(&mut command)
    };
    let ran: Vec<Result<RunStats>> = thread::scope(|scope| {
        let jobs: Vec<_> = (0..jobs).map(|number| scope.spawn(move || job(number))).collect();
        let join = |job: thread::ScopedJoinHandle<'_, _>| job.join().expect("a job does not panic");
        jobs.into_iter().map(join).collect()
    });
    let mut all = RunStats::default();
    for one in ran {
        all.add(one?);
    }
    all.took = start.elapsed();
    Ok(all)
}

/// Runs one process, and reads what it prints of itself.
fn run_job(command: &mut Command) -> Result<RunStats> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a fuzz target")?;
    let stderr = child.stderr.take().context("its output is piped")?;
    let mut stats = RunStats::default();
    for line in BufReader::new(stderr).split(b'\n') {
        stats.read(&String::from_utf8_lossy(&line?));
    }
    let status = child.wait().context("waiting for a fuzz target")?;
    if !status.success() && stats.failure.is_none() {
        stats.failure = Some(format!("ended with {status}"));
    }
    Ok(stats)
}
