//! A real agent on a node, and what it reports.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use netns::Node;
use router_core::frame::{self, Body, LoadReport};
use serde_json::Value;

use crate::folder::Folder;
use crate::node_manifests::{NODE, NodeManifests, PodEntry};
use crate::patience;

/// Deadline of every wait, for a machine of usual speed.
const USUAL_PATIENCE: Duration = Duration::from_secs(120);

pub struct Agent<'a> {
    pub node: &'a Node,
    pub manifests: NodeManifests,
    flags: Vec<String>,
    port: u16,
    /// Holds the stderr of all its processes.
    log: Folder,
    child: Child,
}

fn binary() -> String {
    let path = std::env::var("PD_ROUTER_BIN");
    path.expect("PD_ROUTER_BIN names the built pd-router: run `cargo xtask test kernel`")
}

impl<'a> Agent<'a> {
    pub fn start(node: &'a Node, pods: &[PodEntry]) -> Agent<'a> {
        Agent::start_with(node, pods, &[])
    }

    pub fn start_with(node: &'a Node, pods: &[PodEntry], flags: &[&str]) -> Agent<'a> {
        Agent::start_at(node, pods, flags, 9911)
    }

    fn start_at(node: &'a Node, pods: &[PodEntry], flags: &[&str], port: u16) -> Agent<'a> {
        let manifests = NodeManifests::new();
        manifests.write(pods);
        Agent::run(node, manifests, flags, port, &[])
    }

    /// An agent that another program starts: `by` is its command line up to the agent's.
    pub fn start_by(node: &'a Node, pods: &[PodEntry], by: &[&str]) -> Agent<'a> {
        let manifests = NodeManifests::new();
        manifests.write(pods);
        Agent::run(node, manifests, &[], 9911, by)
    }

    fn run(
        node: &'a Node,
        manifests: NodeManifests,
        flags: &[&str],
        port: u16,
        by: &[&str],
    ) -> Agent<'a> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let log = Folder::new("agent");
        let child = spawn(node, by, &manifests, &flags, &log);
        let mut agent = Agent { node, manifests, flags, port, log, child };
        agent.until_ready();
        agent
    }

    /// Its stderr, of all processes that it had.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path().join(LOG)).expect("the agent's log")
    }

    /// Another agent on the same node, with pins and a port of its own.
    pub fn beside(&self, pods: &[PodEntry], flags: &[&str], port: u16) -> Agent<'a> {
        let listen = format!("127.0.0.1:{port}");
        let flags = [flags, &["--listen", &listen]].concat();
        Agent::start_at(self.node, pods, &flags, port)
    }

    /// Waits until the agent is ready. It fails at once if the agent ends.
    fn until_ready(&mut self) {
        let start = Instant::now();
        while self.get("/readyz").is_none() {
            let ended = self.child.try_wait().expect("waiting for the agent");
            assert!(ended.is_none(), "the agent ended before it was ready: {ended:?}");
            let in_time = start.elapsed() < patience(USUAL_PATIENCE);
            assert!(in_time, "the agent does not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `/v1/loads` now.
    pub fn loads(&self) -> Value {
        let body = self.get("/v1/loads").expect("the agent answers");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Waits until `holds` is true of `/v1/loads`, and returns that.
    pub fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let loads = self.loads();
            if holds(&loads) {
                return loads;
            }
            assert!(start.elapsed() < patience(USUAL_PATIENCE), "not {what}: {loads:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `/v1/loads` once every counter has been read again: requests are read more often than the
    /// rest.
    pub fn read_again(&self) -> Value {
        let start = Instant::now();
        loop {
            // The ages are as of a later moment than this.
            let elapsed = start.elapsed();
            let loads = self.loads();
            let is_older = |pod: &Value| {
                pod["age_ms"].as_f64().is_none_or(|age| age / 1e3 >= elapsed.as_secs_f64())
            };
            if !loads["pods"].as_array().expect("a list").iter().any(is_older) {
                return loads;
            }
            assert!(elapsed < patience(USUAL_PATIENCE), "not read again: {loads:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The full frame that a new subscriber gets first.
    pub fn first_report(&self) -> LoadReport {
        let mut stream = self.open_stream();
        let mut answer = Vec::new();
        let bytes = loop {
            let mut part = [0; 4096];
            let count = stream.read(&mut part).expect("reading");
            answer.extend(&part[..count]);
            let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
            let mut body = BytesMut::from(head.map_or(&[][..], |end| &answer[end + 4..]));
            if let Some(bytes) = frame::split_frame(&mut body).expect("a frame") {
                break bytes;
            }
            assert!(count > 0, "no frame in {answer:?}");
        };
        let frame = frame::decode(&bytes).expect("a frame");
        let Body::Full(report) = frame.body else { panic!("{frame:?} is not a full frame") };
        report
    }

    /// A connection on which the agent streams load frames.
    fn open_stream(&self) -> TcpStream {
        let port = self.port;
        self.node.netns.run(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connecting");
            stream.write_all(b"GET /v1/loads/stream HTTP/1.0\r\n\r\n").expect("asking");
            stream
        })
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").expect("the agent answers")
    }

    /// The body of a 200, by a request of HTTP/1.0 on the node's loopback.
    fn get(&self, path: &str) -> Option<String> {
        let port = self.port;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        self.node.netns.run(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            head.contains(" 200 ").then(|| body.to_owned())
        })
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("killing the agent");
        self.child.wait().expect("the agent ends");
    }

    /// Starts a new process after a kill.
    pub fn restart(&mut self) {
        self.child = spawn(self.node, &[], &self.manifests, &self.flags, &self.log);
        self.until_ready();
    }

    /// Subscribes and discards every frame, for as long as the agent lives.
    pub fn subscribe(&self) {
        let mut stream = self.open_stream();
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cleanup(&self) {
        self.node.netns.sh(&format!("{} agent --cleanup", binary()));
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

const LOG: &str = "stderr";

fn spawn(
    node: &Node,
    by: &[&str],
    manifests: &NodeManifests,
    flags: &[String],
    log: &Folder,
) -> Child {
    let binary = binary();
    let mut words: Vec<String> = by.iter().map(|word| (*word).to_owned()).collect();
    words.extend([binary.as_str(), "agent", "--node-name", NODE, "--manifests"].map(str::to_owned));
    words.push(manifests.path().display().to_string());
    words.extend_from_slice(flags);
    let log = OpenOptions::new().create(true).append(true).open(log.path().join(LOG));
    let log = log.expect("a file for the agent's log");
    node.netns.run(move || {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stderr(log).env("PD_ROUTER_LOG", "warn");
        command.spawn().expect("starting the agent")
    })
}

/// The load of a pod.
pub fn pod<'v>(loads: &'v Value, name: &str) -> &'v Value {
    let name = format!("default/{name}");
    let pods = loads["pods"].as_array().expect("pods");
    pods.iter().find(|pod| pod["pod"] == *name).unwrap_or(&Value::Null)
}

/// A pod's connections with a peer (`""`: an unknown one) of a class.
pub fn pair<'v>(loads: &'v Value, name: &str, peer: &str, class: &str) -> &'v Value {
    let name = format!("default/{name}");
    let peer = if peer.is_empty() { Value::Null } else { format!("default/{peer}").into() };
    let pairs = loads["pairs"].as_array().expect("pairs");
    let fits = |p: &&Value| p["pod"] == *name && p["peer"] == peer && p["class"] == class;
    pairs.iter().find(fits).unwrap_or(&Value::Null)
}

pub fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count"))
}
