//! The servers of one run, and their manifests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use netns::{Node, PodNetwork};
use router_tests::manifests::{self, ENGINE_PORT};
use router_tests::{Client, Gateway, Manifests, eventually};
use serde_json::Value;

use crate::agent::AgentProcess;
use crate::server::{Installation, Role, Server};
use crate::simulator::EnginePair;

/// Time for an engine to finish aborted work. It may be in the middle of a long prompt on a busy
/// machine.
const IDLE: Duration = Duration::from_secs(20);

/// Memory that four servers need, including their start. Three need less.
const MEMORY_OF_FOUR_KIB: u64 = 15 << 20;

pub(crate) struct TestBed {
    pub(crate) prefill: Server,
    /// Only if memory allows.
    pub(crate) second: Option<Server>,
    pub(crate) decode: Server,
    pub(crate) reference: Server,
    pub(crate) agent: AgentProcess,
    manifests: Manifests,
}

/// The pod of each server.
pub(crate) struct Pods {
    prefill: PodNetwork,
    second: PodNetwork,
    decode: PodNetwork,
    reference: PodNetwork,
}

impl TestBed {
    pub(crate) fn pods(node: &Node) -> Pods {
        let pod = |host| node.pod(host);
        Pods { prefill: pod(2), decode: pod(3), reference: pod(4), second: pod(5) }
    }

    pub(crate) async fn start(pods: Pods) -> TestBed {
        let installation = Installation {
            python: env_path("PD_ROUTER_SGLANG_PYTHON"),
            model: env_path("PD_ROUTER_SGLANG_MODEL"),
            logs: env_path("PD_ROUTER_SGLANG_LOGS"),
        };
        let start = |name, role, pod| Server::start(name, role, pod, &installation);
        let enough = available_memory_kib() >= MEMORY_OF_FOUR_KIB;
        let manifests = Manifests::documents();
        // Before the engines, so that it counts all their bytes.
        let agent = AgentProcess::start(manifests.path());
        let mut testbed = TestBed {
            prefill: start("prefill", Role::Prefill, pods.prefill),
            second: enough.then(|| start("second", Role::Prefill, pods.second)),
            decode: start("decode", Role::Decode, pods.decode),
            reference: start("reference", Role::Reference, pods.reference),
            agent,
            manifests,
        };
        testbed.write_pods(true);
        for server in testbed.servers() {
            server.wait_until_ready().await;
        }
        testbed
    }

    /// A gateway that knows the settings of every engine.
    pub(crate) async fn gateway(&self, flags: &[&str]) -> Gateway {
        self.write_pods(true);
        self.start_gateway(flags).await
    }

    /// A gateway that uses the first prefill only.
    pub(crate) async fn gateway_of_one_pair(&self, flags: &[&str]) -> Gateway {
        self.write_pods(false);
        self.start_gateway(flags).await
    }

    async fn start_gateway(&self, flags: &[&str]) -> Gateway {
        let gateway = Gateway::start_with(&self.manifests, flags).await;
        let engines = self.engines().count();
        eventually("the gateway knows the settings of all engines", IDLE, async || {
            let fleet = gateway.fleet().await.to_string();
            (fleet.matches("page_size").count() >= engines).then_some(())
        })
        .await;
        gateway
    }

    /// Writes the manifests of all pods. `second` says whether the second prefill is ready.
    fn write_pods(&self, second: bool) {
        for server in self.engines() {
            let role = if server.role == Role::Decode { "decode" } else { "prefill" };
            let ready = second || server.name != "second";
            let pod = manifests::Pod::new(server.name, role, server.ip());
            self.manifests.put_pod(&manifests::Pod { ready, ..pod });
        }
    }

    /// The engines that are used as pairs.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &Server> {
        self.prefills().chain([&self.decode])
    }

    pub(crate) fn prefills(&self) -> impl Iterator<Item = &Server> {
        [&self.prefill].into_iter().chain(&self.second)
    }

    fn servers(&mut self) -> impl Iterator<Item = &mut Server> {
        [&mut self.prefill, &mut self.decode, &mut self.reference]
            .into_iter()
            .chain(&mut self.second)
    }

    /// The pair by its addresses.
    pub(crate) fn pair(&self) -> EnginePair {
        let address = |server: &Server| SocketAddr::new(server.ip(), ENGINE_PORT);
        EnginePair { prefill: address(&self.prefill), decode: address(&self.decode) }
    }

    /// Waits until the first prefill has a request.
    pub(crate) async fn wait_until_prefill_has_a_request(&self) {
        eventually("prefill has the request", IDLE, async || {
            let load = self.prefill.load().await;
            let waits = load["disaggregation"]["prefill_bootstrap_queue_reqs"] != 0;
            let runs = load["num_running_reqs"] != 0 || load["num_waiting_reqs"] != 0;
            (waits || runs).then_some(())
        })
        .await;
    }

    /// Restarts or thaws the servers that an earlier check has left dead or frozen.
    pub(crate) async fn recover(&mut self) {
        for server in self.servers() {
            if server.has_exited() {
                server.restart().await;
            } else {
                server.thaw();
            }
        }
    }

    /// Waits until no engine has a request, or KV outside the prefix cache.
    pub(crate) async fn wait_until_idle(&self) {
        for server in self.engines() {
            let what = format!("{} is idle", server.name);
            eventually(&what, IDLE, async || {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let load = server.load().await;
                is_idle(&load).then_some(())
            })
            .await;
        }
    }

    pub(crate) fn reference(&self) -> Client {
        self.reference.client()
    }
}

/// Whether the load of an engine reports no request in any queue.
fn is_idle(load: &Value) -> bool {
    let queues = load["disaggregation"].as_object();
    let queued = queues.into_iter().flatten().filter(|(name, _)| name.ends_with("_reqs"));
    load["num_running_reqs"] == 0
        && load["num_waiting_reqs"] == 0
        && queued.into_iter().all(|(_, count)| count == 0)
}

/// A path from an environment variable that `cargo xtask test real-sglang` sets.
pub(crate) fn env_path(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value.unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test real-sglang`")).into()
}

fn available_memory_kib() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").expect("reading /proc/meminfo");
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.expect("MemAvailable in /proc/meminfo")
}
