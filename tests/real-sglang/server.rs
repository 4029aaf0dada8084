//! A real SGLang server on the CPU, in its own pod.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use netns::PodNetwork;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use router_tests::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};
use router_tests::{Client, eventually};
use serde_json::Value;

use crate::requests::MODEL;

/// Importing takes minutes on a busy machine.
const START: Duration = Duration::from_secs(400);
/// The log line after which a server is ready.
const READY_LINE: &str = "The server is fired up";
/// The process name of an engine's scheduler.
const SCHEDULER: &str = "sglang::scheduler";
/// Time an engine waits for its peer. SGLang's 300 s would make failures slow to observe.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(25);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Prefill,
    Decode,
    /// An ordinary server, whose answers the pair's are compared with.
    Reference,
}

/// Paths that every server is started with.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) python: PathBuf,
    pub(crate) model: PathBuf,
    pub(crate) logs: PathBuf,
}

pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(crate) pod: PodNetwork,
    installation: Installation,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Starts the server without waiting, so that several can import at the same time.
    pub(crate) fn start(
        name: &'static str,
        role: Role,
        pod: PodNetwork,
        installation: &Installation,
    ) -> Server {
        let log = installation.logs.join(format!("{name}.log"));
        let child = spawn(role, &pod, installation, &log);
        Server { name, role, pod, installation: installation.clone(), log, child }
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.pod.address
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(SocketAddr::new(self.ip(), ENGINE_PORT))
    }

    /// Waits until the server is ready.
    pub(crate) async fn wait_until_ready(&mut self) {
        let what = format!("{} serves; its log is {}", self.name, self.log.display());
        eventually(&what, START, async || {
            if let Some(status) = self.child.try_wait().expect("waiting for a child of ours") {
                panic!("{} ended with {status}:\n{}", self.name, tail(&self.log()));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            self.log().contains(READY_LINE).then_some(())
        })
        .await;
    }

    pub(crate) fn has_exited(&mut self) -> bool {
        self.child.try_wait().expect("waiting for a child of ours").is_some()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Kills all its processes at once, as the kernel kills a pod that is out of memory.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a killed child ends");
    }

    /// Stops all its processes: ports stay open, nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Stops only the scheduler process; the HTTP processes run on.
    pub(crate) fn freeze_scheduler(&self) {
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let ours = processes.filter_map(|entry| {
            let id = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let group = getpgid(Some(id)).ok()?;
            (line.starts_with(SCHEDULER) && group == self.group()).then_some(id)
        });
        let ours: Vec<Pid> = ours.collect();
        assert!(!ours.is_empty(), "{} has no process called {SCHEDULER}", self.name);
        for id in ours {
            kill(id, Signal::SIGSTOP).expect("the scheduler runs");
        }
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Starts the server again after a kill and waits until it is ready.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.role, &self.pod, &self.installation, &self.log);
        self.wait_until_ready().await;
    }

    /// The load that the engine reports.
    pub(crate) async fn load(&self) -> Value {
        self.client().get("/v1/loads").await.expect_status(200).json()["loads"][0].take()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("an id fits"))
    }

    fn signal(&self, signal: Signal) {
        killpg(self.group(), signal).expect("the server runs");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if the server has already exited.
        _ = killpg(self.group(), Signal::SIGKILL);
        _ = self.child.wait();
    }
}

fn spawn(role: Role, pod: &PodNetwork, installation: &Installation, log: &Path) -> Child {
    let log = File::create(log).expect("a server's log");
    let mut command = command(role, pod.address, installation);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
    // Its own process group, so that one signal reaches the scheduler and the detokenizer too.
    command.process_group(0);
    pod.netns.run(move || command.spawn().expect("starting SGLang"))
}

fn command(role: Role, ip: IpAddr, installation: &Installation) -> Command {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("real-sglang/engine");
    // Ends with the test, whatever the result. Runs with low priority.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nice", "-n", "5"]);
    command.arg(&installation.python).args(["-m", "sglang.launch_server"]);
    command.arg("--model-path").arg(&installation.model);
    command.args(["--served-model-name", MODEL]);
    command.args(["--device", "cpu", "--dtype", "float32", "--grammar-backend", "none"]);
    command.args(["--attention-backend", "torch_native", "--sampling-backend", "pytorch"]);
    command.args(["--disable-cuda-graph", "--disable-overlap-schedule", "--enable-metrics"]);
    command.args(["--max-total-tokens", "20000", "--mem-fraction-static", "0.1"]);
    command.args(["--host", &ip.to_string(), "--port", &ENGINE_PORT.to_string()]);
    let bootstrap = BOOTSTRAP_PORT.to_string();
    let peer_timeout = PEER_TIMEOUT.as_secs().to_string();
    match role {
        Role::Prefill => command
            .args(["--disaggregation-mode", "prefill"])
            .args(["--disaggregation-bootstrap-port", &bootstrap]),
        Role::Decode => command.args(["--disaggregation-mode", "decode"]),
        Role::Reference => &mut command,
    };
    if role != Role::Reference {
        command.args(["--disaggregation-transfer-backend", "mooncake"]);
    }
    command
        .env("PYTHONPATH", engine.join("stand-in"))
        .env("SGLANG_USE_CPU_ENGINE", "1")
        .env("SGLANG_HOST_IP", ip.to_string())
        .env("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", &peer_timeout)
        .env("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", &peer_timeout)
        .env("HF_HUB_OFFLINE", "1")
        .env("OMP_NUM_THREADS", "1")
        // SGLang requests RDMA from Mooncake, which a network namespace does not have.
        .env("MC_FORCE_TCP", "1")
        .env_remove("PYTHONDONTWRITEBYTECODE");
    command
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
