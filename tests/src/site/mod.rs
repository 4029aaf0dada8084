//! A site: a node with engines in pods, an agent, and gateways on a machine outside.

pub mod bypass;
pub mod crowd;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netns::impaired_link::{self, Impairment};
use netns::{Namespace, Node, PodNetwork, Topology};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::manifests::{BOOTSTRAP_PORT, ENGINE_PORT, LISTENER_PORT, Manifests, Pod};

/// Deadline of every wait.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const AGENT_PORT: u16 = 9911;
pub const TOKEN: &str = "a-token-of-this-test";

/// One engine in its pod.
pub struct SiteEngine {
    pub name: String,
    pub role: &'static str,
    pub pod: PodNetwork,
    /// Impairment of the pod's link, if it has one that can be impaired.
    pub impairment: Option<Arc<Impairment>>,
    _process: Process,
}

/// A process that ends with the test.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("--- {}", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

pub struct Site {
    pub engines: Vec<SiteEngine>,
    pub manifests: Manifests,
    agent: Option<Process>,
    agent_flags: Vec<String>,
    gateways: Vec<Process>,
    logs: u32,
    pub node: Node,
}

fn variable(name: &str) -> PathBuf {
    let path = std::env::var_os(name).map(PathBuf::from);
    path.unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test feedback`"))
}

impl Site {
    /// A node without anything on it.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "making one creates namespaces")]
    pub fn new() -> Site {
        let manifests = Manifests::documents();
        manifests.put(".token", TOKEN);
        Site {
            engines: Vec::new(),
            manifests,
            agent: None,
            agent_flags: Vec::new(),
            gateways: Vec::new(),
            logs: 0,
            node: Node::new(Topology::Routed),
        }
    }

    fn log(&mut self) -> PathBuf {
        self.logs += 1;
        self.manifests.path().join(format!(".log-{}", self.logs))
    }

    /// Adds an engine; `wired` puts its pod behind a link that can be impaired.
    pub fn engine(&mut self, role: &'static str, wired: bool, flags: &str) {
        let host = self.engines.len() as u8 + 2;
        let mut impairment = None;
        let pod = match wired {
            false => self.node.pod(host),
            true => self.node.pod_behind(host, |node, pod, link| {
                impairment = Some(impaired_link::connect((node, link), (pod, "eth0")));
            }),
        };
        let count = self.engines.iter().filter(|engine| engine.role == role).count();
        let name = format!("{role}-{count}");
        let words = format!(
            "--role {role} --host {} --port {ENGINE_PORT} --bootstrap-port {BOOTSTRAP_PORT} \
             --disconnect-stream 0.2 --disconnect-poll 0.2 {flags}",
            pod.address
        );
        let words = words.split_whitespace().map(str::to_owned).collect();
        let log = self.log();
        let process = start(&pod.netns, log, variable("SGLANG_SIM_BIN"), words);
        self.manifests.put_pod(&Pod::new(&name, role, pod.address));
        self.engines.push(SiteEngine { name, role, pod, impairment, _process: process });
    }

    /// The address of the agent, from the gateways and from the node.
    pub fn agent_address(&self) -> SocketAddr {
        SocketAddr::new(self.node.ip(250, 1), AGENT_PORT)
    }

    pub fn agent(&mut self, flags: &str) {
        let words = format!(
            "agent --manifests {0} --listen {1} --token-file {0}/.token {flags}",
            self.manifests.path().display(),
            self.agent_address(),
        );
        self.agent_flags = words.split_whitespace().map(str::to_owned).collect();
        self.restart_agent();
    }

    /// Starts the agent as before.
    pub fn restart_agent(&mut self) {
        let log = self.log();
        let program = variable("PD_ROUTER_BIN");
        self.agent = Some(start(&self.node.netns, log, program, self.agent_flags.clone()));
    }

    /// Ends the agent as a crash would.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Starts a gateway outside and waits until it serves.
    pub fn gateway(&mut self, flags: &str) -> SiteGateway {
        let ip: IpAddr = Ipv4Addr::new(127, 0, 0, self.gateways.len() as u8 + 1).into();
        let words = format!(
            "gateway --manifests {0} --listen-address {ip} --admin-listen {ip}:9901 \
             --explain-headers --agent-token-file {0}/.token --policy predicted {flags}",
            self.manifests.path().display(),
        );
        let words = words.split_whitespace().map(str::to_owned).collect();
        let log = self.log();
        let process = start(&self.node.outside, log, variable("PD_ROUTER_BIN"), words);
        self.gateways.push(process);
        let gateway = SiteGateway {
            address: SocketAddr::new(ip, LISTENER_PORT),
            admin: SocketAddr::new(ip, 9901),
            outside: self.node.outside.path(),
        };
        let engines = self.engines.len();
        wait("the gateway is ready", || {
            let known = gateway.get("/fleet")?.matches("page_size").count();
            (gateway.get("/readyz").is_some() && known >= engines).then_some(())
        });
        gateway
    }
}

impl Site {
    /// The process of the gateway that was started as the `at`-th.
    pub fn gateway_pid(&self, at: usize) -> u32 {
        self.gateways[at].child.id()
    }
}

fn start(netns: &Namespace, log: PathBuf, program: PathBuf, words: Vec<String>) -> Process {
    let file = File::create(&log).expect("a log");
    let child = netns.run(move || {
        let err = file.try_clone().expect("a second handle");
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(file).stderr(err);
        command.spawn().expect("starting a program")
    });
    Process { child, log }
}

/// A gateway as its clients see it, from outside the node.
#[derive(Clone, Debug)]
pub struct SiteGateway {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// The namespace it is in.
    pub outside: String,
}

impl SiteGateway {
    /// The body of a 200 of the admin port.
    pub fn get(&self, path: &str) -> Option<String> {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let (outside, admin) = (self.outside.clone(), self.admin);
        let asked = std::thread::spawn(move || {
            enter(&outside);
            ask(admin, request.as_bytes()).ok()
        });
        let (head, body) = asked.join().ok()??;
        head.contains(" 200 ").then_some(body)
    }

    /// The load of a worker as `/fleet` has it.
    pub fn load_of(&self, worker: &str) -> Value {
        let fleet: Value = self
            .get("/fleet")
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let loads = fleet["loads"].as_array().cloned().unwrap_or_default();
        let name = format!("default/{worker}");
        loads.into_iter().find(|load| load["worker"] == *name).unwrap_or_default()
    }

    /// Waits until the kernel's loads of all workers are fresh.
    pub fn until_loads_fresh(&self, workers: usize) {
        wait("every worker's load is fresh", || {
            let fleet: Value = serde_json::from_str(&self.get("/fleet")?).ok()?;
            let fresh = fleet["loads"].as_array()?.iter().filter(|load| {
                load["load"]["age_ms"].as_f64().is_some_and(|age| age < 300.0)
                    && !load["kernel"].is_null()
            });
            (fresh.count() >= workers).then_some(())
        });
    }

    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").unwrap_or_default();
        let samples = text.lines().filter(|line| line.starts_with(name));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

/// Waits until `look` returns something, and returns that.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Moves this thread into a network namespace.
pub fn enter(path: &str) {
    let namespace = File::open(path).expect("a namespace");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
}

/// Sends a request and reads the answer to the connection's end: its head and its body.
pub fn ask(address: SocketAddr, request: &[u8]) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

/// A POST of JSON as bytes, whose connection ends with its answer.
pub fn post(path: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}
