//! KV cache between simulated engines, pair by pair.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::agent::{Agent, count};
use crate::manifests::{BOOTSTRAP, ENGINE, decode, prefill};
use crate::node::{Node, Pod, Topology};
use crate::traffic::connect;

/// What the simulator sends ahead of each transfer's KV.
const FRAMING: u64 = 36;

/// A simulated engine in a pod; ends with the test.
struct Engine(Child);

impl Engine {
    fn start(pod: &Pod, role: &str) -> Engine {
        let path = std::env::var("SGLANG_SIM_BIN");
        let path = path.expect("SGLANG_SIM_BIN names the built sglang-sim");
        let (host, role) = (pod.address.to_string(), role.to_owned());
        let mut child = pod.space.run(move || {
            Command::new(path)
                .args(["--role", &role, "--host", &host, "--port", &ENGINE.to_string()])
                .args(["--bootstrap-port", &BOOTSTRAP.to_string(), "--instant"])
                .args(["--kv-bytes-per-token", "40000", "--natural-length", "8"])
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
}

impl Drop for Engine {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// One request from outside, answered whole.
fn ask(node: &Node, address: IpAddr, method: &str, path: &str, body: &str) -> (u16, String) {
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

/// One request to both legs, as a gateway sends it, with a prompt of so many sentences.
fn generate(node: &Node, prefill: &Pod, decode: &Pod, sentences: usize) {
    static ROOM: AtomicU64 = AtomicU64::new(1_000);
    let body = json!({
        "text": "a prompt of some words ".repeat(sentences),
        "sampling_params": {"max_new_tokens": 4},
        "bootstrap_host": prefill.address.to_string(),
        "bootstrap_port": BOOTSTRAP,
        "bootstrap_room": ROOM.fetch_add(1, Ordering::Relaxed),
    });
    let body = &body.to_string();
    std::thread::scope(|scope| {
        let ask = |leg: &Pod| {
            let address = leg.address;
            scope.spawn(move || ask(node, address, "POST", "/generate", body))
        };
        for leg in [ask(prefill), ask(decode)] {
            let (status, answer) = leg.join().expect("an answer");
            assert_eq!(status, 200, "{answer}");
        }
    });
}

#[test]
fn kv_bytes_of_every_pair_are_what_the_engines_moved() {
    let node = Node::new(Topology::Routed);
    let pods: Vec<Pod> = (2..6).map(|host| node.pod(host)).collect();
    let [p0, p1, d0, d1] = &pods[..] else { panic!("four") };
    let named = [
        prefill("p0", p0.address),
        prefill("p1", p1.address),
        decode("d0", d0.address),
        decode("d1", d1.address),
    ];
    let agent = Agent::start(&node, &named);
    let engines: Vec<Engine> = [(p0, "prefill"), (p1, "prefill"), (d0, "decode"), (d1, "decode")]
        .map(|(pod, role)| Engine::start(pod, role))
        .into();
    for (prefill, decode, times) in [(p0, d0, 3), (p0, d1, 1), (p1, d1, 2)] {
        for time in 0..times {
            generate(&node, prefill, decode, 10 + time);
        }
    }
    let moved = [("p0", p0), ("p1", p1)].map(|(name, pod)| (name, sent_by(&node, pod)));
    drop(engines);
    let names: BTreeMap<String, &str> =
        [(d0, "d0"), (d1, "d1")].map(|(pod, name)| (pod.address.to_string(), name)).into();
    let loads = agent.until("all engines gone", |loads| {
        let pairs = loads["pairs"].as_array().expect("a list");
        pairs.iter().all(|pair| pair["open"] == 0)
    });
    let kv = loads["kv"].as_array().expect("kv");
    assert_eq!(kv.len(), 3, "{kv:#?}");
    for (prefill, sent) in moved {
        for (peer, bytes, transfers) in sent {
            let decode = names[&peer];
            let row = kv.iter().find(|row| {
                row["prefill"] == format!("default/{prefill}")
                    && row["decode"] == format!("default/{decode}")
            });
            let counted = count(&row.expect("a row for the pair")["bytes"]);
            assert!(bytes > 0);
            assert_eq!(counted, bytes + transfers * FRAMING, "{prefill} to {decode}");
        }
    }
    // Handshakes and control messages are a class of their own, requests another.
    let classes: Vec<&str> = loads["pairs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|p| p["class"].as_str())
        .collect();
    for class in ["engine", "bootstrap", "kv", "kv_control"] {
        assert!(classes.contains(&class), "{class} is not among {classes:?}");
    }
    assert!(!classes.contains(&"other"), "{classes:?}");
}

/// Peer, KV bytes and transfers, as the engine itself says.
fn sent_by(node: &Node, pod: &Pod) -> Vec<(String, u64, u64)> {
    let (status, body) = ask(node, pod.address, "GET", "/sim/kv", "");
    assert_eq!(status, 200);
    let kv: Value = serde_json::from_str(&body).expect("JSON");
    let peers = kv.as_object().or_else(|| kv["peers"].as_object()).expect("peers");
    peers
        .iter()
        .filter(|(_, traffic)| traffic["sent_bytes"].as_u64().is_some_and(|bytes| bytes > 0))
        .map(|(peer, traffic)| {
            (peer.clone(), count(&traffic["sent_bytes"]), count(&traffic["sent_transfers"]))
        })
        .collect()
}
