//! `cargo xtask cluster up`: from nothing to nodes that are ready.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::credentials::Credentials;
use super::plan::{Addresses, CONTROL_PLANE, Plan};
use super::programs::{self, Programs};
use super::services::Planner;
use super::{Cluster, images, state, supervisor};
use crate::steps::step;

/// Time within which a step is done on a machine that has other work too.
const STEP: Duration = Duration::from_secs(240);

/// Starts a cluster, or does nothing where one of that name runs.
///
/// # Errors
/// A program is missing, a cluster of that name and another shape runs, or a step fails; then nothing
/// of the cluster is left but its logs.
pub(super) fn run(name: &str, nodes: u8, version: &str) -> Result<()> {
    let start = Instant::now();
    let programs = programs::get(version)?;
    let _turn = state::turn(name)?;
    if let Some(cluster) = Cluster::find(name)? {
        let (has, wants) = (cluster.plan.nodes().count(), usize::from(nodes));
        let runs = &cluster.plan.kubernetes;
        if has != wants || *runs != format!("v{version}") {
            bail!(
                "the cluster {name} runs with {has} nodes and Kubernetes {runs}: take it down first"
            );
        }
        println!("the cluster {name} is up");
        return Ok(());
    }
    state::clean(name)?;
    let folder = state::folder(name)?;
    _ = fs::remove_dir_all(folder.join("logs"));
    fs::create_dir_all(folder.join("logs")).context("making the cluster's folder")?;
    std::os::unix::fs::symlink(programs.kubernetes("kubectl"), folder.join("kubectl"))
        .context("linking kubectl")?;
    let mut supervisor =
        Supervisor::start(name, &folder).or_else(|error| state::clean(name).and(Err(error)))?;
    let ready = bring_up(&mut supervisor, name, (nodes, version), &programs);
    if let Err(error) = ready {
        // Its end of the pipe closes, and it removes the cluster.
        supervisor.wait();
        return Err(error.context(format!("logs are in {}", folder.join("logs").display())));
    }
    supervisor.say(supervisor::DETACH)?;
    println!("the cluster {name} is up: {:.1} s", start.elapsed().as_secs_f64());
    let option =
        if name == super::DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
    println!("cargo xtask cluster kubectl{option} get nodes");
    Ok(())
}

fn bring_up(
    supervisor: &mut Supervisor,
    name: &str,
    (nodes, version): (u8, &str),
    programs: &Programs,
) -> Result<()> {
    let folder = state::folder(name)?;
    let addresses = supervisor.addresses;
    step("making certificates and configuration", || {
        let credentials = Credentials::make(folder.join("credentials"), addresses, nodes)?;
        let planner = Planner { folder: &folder, addresses, programs, credentials: &credentials };
        planner.plan(version, nodes)?.write(&folder)
    })?;
    step(&format!("making the namespaces of {} machines", nodes + 1), || {
        supervisor.say(supervisor::START)?;
        supervisor
            .expect("started")
            .with_context(|| supervisor::log_end(&folder.join("logs/supervisor.log")))
    })?;
    let cluster = Cluster { folder, plan: Plan::read(&state::folder(name)?)? };
    step("waiting for the API server", || {
        supervisor
            .until("the API server is ready", || {
                cluster.kubectl(&["get", "--raw", "/readyz"]).map(|_| ())
            })
            .with_context(|| cluster.log_end(CONTROL_PLANE, "kube-apiserver"))
    })?;
    step("loading the images of pods and of CoreDNS", || images::load_base(&cluster, programs))?;
    step("starting CoreDNS", || {
        let manifests = Planner::config(&cluster.folder, "dns.yaml");
        cluster.kubectl(&["apply", "-f", &manifests]).map(|_| ())
    })?;
    step(&format!("waiting for {nodes} nodes"), || {
        for machine in cluster.plan.nodes() {
            let node = format!("node/{}", machine.name);
            let registered = || cluster.kubectl(&["get", &node]).map(|_| ());
            supervisor
                .until(&format!("{node} is registered"), registered)
                .with_context(|| cluster.log_end(&machine.name, "kubelet"))?;
            cluster.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=240s"])?;
        }
        Ok(())
    })?;
    step("waiting for CoreDNS", || {
        let words = ["rollout", "status", "-n", "kube-system", "deployment/coredns"];
        cluster.kubectl(&[&words[..], &["--timeout=240s"]].concat()).map(|_| ())
    })
}

/// The supervisor, as long as it is not detached: when this ends, it removes the cluster.
struct Supervisor {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    addresses: Addresses,
}

impl Supervisor {
    fn start(name: &str, folder: &Path) -> Result<Supervisor> {
        // A build may replace this program while the cluster runs, or may have done so since it started.
        let program = folder.join("xtask");
        fs::copy("/proc/self/exe", &program).context("copying this program")?;
        let log = fs::File::create(folder.join("logs/supervisor.log"))?;
        let mut process = Command::new("setsid")
            .arg(program)
            .args(["cluster", "supervise", "--name", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting the supervisor")?;
        let output = process.stdout.take().context("standard output is a pipe")?;
        let mut output = BufReader::new(output);
        let number = line(&mut output)?;
        let number = number.parse().with_context(|| {
            format!(
                "the supervisor did not start: {}",
                supervisor::log_end(&folder.join("logs/supervisor.log"))
            )
        })?;
        Ok(Supervisor { process, output, addresses: Addresses { number } })
    }

    fn say(&mut self, word: &str) -> Result<()> {
        let input = self.process.stdin.as_mut().context("standard input is a pipe")?;
        writeln!(input, "{word}").context("the supervisor has ended")
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let said = line(&mut self.output)?;
        if said != expected {
            bail!("the supervisor has ended");
        }
        Ok(())
    }

    /// Tries until it succeeds, as long as the cluster is there.
    fn until(&mut self, what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + STEP;
        while let Err(error) = attempt() {
            if self.process.try_wait()?.is_some() {
                bail!("the cluster has been taken down");
            }
            if Instant::now() > deadline {
                return Err(error.context(format!("{what}: not within {} s", STEP.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn wait(mut self) {
        drop(self.process.stdin.take());
        _ = self.process.wait();
    }
}

fn line(output: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    output.read_line(&mut line).context("reading from the supervisor")?;
    Ok(line.trim_end().to_owned())
}
