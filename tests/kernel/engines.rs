//! Simulated engines in network namespaces, and requests to them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use netns::{Namespace, Node, PodNetwork};
use router_tests::agent::Agent;
use router_tests::node_manifests::{BOOTSTRAP, ENGINE, decode, prefill};
use router_tests::traffic::connect;
use serde_json::{Value, json};

/// A simulated engine; ends with the test.
pub(crate) struct Engine(Child);

impl Engine {
    pub(crate) fn start(pod: &PodNetwork, role: &str) -> Engine {
        Engine::start_in(&pod.netns, pod.address, role, &[])
    }

    pub(crate) fn start_in(netns: &Namespace, host: IpAddr, role: &str, flags: &[&str]) -> Engine {
        let path = std::env::var("SGLANG_SIM_BIN");
        let path = path.expect("SGLANG_SIM_BIN names the built sglang-sim");
        let (host, role) = (host.to_string(), role.to_owned());
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut child = netns.run(move || {
            Command::new(path)
                .args(["--role", &role, "--host", &host, "--port", &ENGINE.to_string()])
                .args(["--bootstrap-port", &BOOTSTRAP.to_string(), "--instant"])
                .args(["--kv-bytes-per-token", "40000", "--natural-length", "8"])
                .args(flags)
                .stdout(Stdio::piped())
                .spawn()
                .expect("starting sglang-sim")
        });
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("its line");
        assert!(!line.is_empty(), "sglang-sim does not start");
        Engine(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// An agent, and the pods and engines of the prefills `p0` and `p1` and the decodes `d0` and `d1`.
pub(crate) fn two_pairs(node: &Node) -> (Agent<'_>, [PodNetwork; 4], [Engine; 4]) {
    let pods = [2, 3, 4, 5].map(|host| node.pod(host));
    let [p0, p1, d0, d1] = &pods;
    let named = [
        prefill("p0", p0.address),
        prefill("p1", p1.address),
        decode("d0", d0.address),
        decode("d1", d1.address),
    ];
    let agent = Agent::start(node, &named);
    let engines = [(p0, "prefill"), (p1, "prefill"), (d0, "decode"), (d1, "decode")]
        .map(|(pod, role)| Engine::start(pod, role));
    (agent, pods, engines)
}

impl Drop for Engine {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// JSON of the simulator's own pages.
pub(crate) fn page(node: &Node, address: IpAddr, path: &str) -> Value {
    let (status, body) = ask(node, address, "GET", path, "");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// One request from outside, answered whole.
pub(crate) fn ask(
    node: &Node,
    address: IpAddr,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = connect(&node.outside, address, ENGINE);
    let head = format!("{method} {path} HTTP/1.1\r\nhost: e\r\nconnection: close\r\n");
    let length = body.len();
    let kind = "content-type: application/json\r\n";
    write!(stream, "{head}{kind}content-length: {length}\r\n\r\n{body}").expect("asking");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.expect("a status"), body.unwrap_or_default())
}

/// One request to both legs, as a gateway sends it, with a prompt of this many sentences.
pub(crate) fn generate(node: &Node, prefill: IpAddr, decode: IpAddr, sentences: usize) {
    static ROOM: AtomicU64 = AtomicU64::new(1_000);
    let body = json!({
        "text": "a prompt of some words ".repeat(sentences),
        "sampling_params": {"max_new_tokens": 4},
        "bootstrap_host": prefill.to_string(),
        "bootstrap_port": BOOTSTRAP,
        "bootstrap_room": ROOM.fetch_add(1, Ordering::Relaxed),
    });
    let body = &body.to_string();
    std::thread::scope(|scope| {
        let ask = |leg: IpAddr| scope.spawn(move || ask(node, leg, "POST", "/generate", body));
        for leg in [ask(prefill), ask(decode)] {
            let (status, answer) = leg.join().expect("an answer");
            assert_eq!(status, 200, "{answer}");
        }
    });
}
