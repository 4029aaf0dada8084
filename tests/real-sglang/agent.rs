//! A real agent on the node of the servers, which reads the same manifests as the gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use router_tests::{Client, eventually};
use serde_json::Value;

const PORT: u16 = 9911;
/// A debug build on a busy machine takes seconds to load its BPF programs.
const START: Duration = Duration::from_secs(30);

pub(crate) struct AgentProcess(Child);

impl AgentProcess {
    /// Starts the agent in the namespaces of the calling thread, which are the node's. It finds the
    /// pods through the routes to them.
    pub(crate) fn start(manifests: &Path) -> AgentProcess {
        // Ends with the test, whatever the result.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(router_tests::gateway::program());
        command.arg("agent").arg("--manifests").arg(manifests).env("PD_ROUTER_LOG", "warn");
        AgentProcess(command.spawn().expect("starting the agent"))
    }

    /// The current `/v1/loads` of the agent.
    pub(crate) async fn loads(&self) -> Value {
        let client = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
        eventually("the agent answers", START, async || {
            let request = client.request(http::Method::GET, "/v1/loads", "");
            let answer = client.try_send(request).await.ok()?.answer().await;
            (answer.status == 200).then(|| answer.json())
        })
        .await
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // Both fail only if the agent has already exited.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The agent's entry for a pod, by the server's name.
pub(crate) fn pod<'v>(loads: &'v Value, name: &str) -> &'v Value {
    let pods = loads["pods"].as_array().expect("pods");
    pods.iter().find(|pod| pod["pod"] == full(name)).unwrap_or(&Value::Null)
}

/// KV bytes from a prefill to a decode.
pub(crate) fn kv_bytes(loads: &Value, prefill: &str, decode: &str) -> u64 {
    let rows = loads["kv"].as_array().expect("kv");
    let of_pair = |row: &&Value| row["prefill"] == full(prefill) && row["decode"] == full(decode);
    rows.iter().find(of_pair).and_then(|row| row["bytes"].as_u64()).unwrap_or_default()
}

/// Open connections by pod, peer and class.
pub(crate) fn open_connections(loads: &Value) -> Vec<(String, String, String, u64)> {
    let rows = loads["pairs"].as_array().expect("pairs");
    let text = |value: &Value| value.as_str().map(short).unwrap_or_default().to_owned();
    let open = rows.iter().map(|row| {
        (text(&row["pod"]), text(&row["peer"]), text(&row["class"]), row["open"].as_u64())
    });
    open.filter_map(|(pod, peer, class, open)| Some((pod, peer, class, open?)))
        .filter(|row| row.3 > 0)
        .collect()
}

fn full(name: &str) -> String {
    format!("default/{name}")
}

fn short(name: &str) -> &str {
    name.strip_prefix("default/").unwrap_or(name)
}
