//! The servers of one run, and the manifests that name them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use netns::{Node, PodNetwork};
use router_tests::manifests::{self, ENGINE_PORT};
use router_tests::{Client, Gateway, Manifests, eventually};
use serde_json::Value;

use crate::agent::Agent;
use crate::server::{Installation, Role, Server};
use crate::simulated::Pair;

/// For an engine to be done with what it was told to stop. It may be in the middle of a long
/// prompt, and other work may want the CPU.
const IDLE: Duration = Duration::from_secs(20);

/// What four servers need, and what they need for starting; three get along with less.
const MEMORY_OF_FOUR_KIB: u64 = 15 << 20;

pub(crate) struct World {
    pub(crate) prefill: Server,
    /// Where memory allows.
    pub(crate) second: Option<Server>,
    pub(crate) decode: Server,
    pub(crate) reference: Server,
    pub(crate) agent: Agent,
    manifests: Manifests,
}

/// Where each server will stand.
pub(crate) struct Pods {
    prefill: PodNetwork,
    second: PodNetwork,
    decode: PodNetwork,
    reference: PodNetwork,
}

impl World {
    pub(crate) fn pods(node: &Node) -> Pods {
        let pod = |host| node.pod(host);
        Pods { prefill: pod(2), decode: pod(3), reference: pod(4), second: pod(5) }
    }

    pub(crate) async fn start(pods: Pods) -> World {
        let installation = Installation {
            python: setting("PD_ROUTER_SGLANG_PYTHON"),
            model: setting("PD_ROUTER_SGLANG_MODEL"),
            logs: setting("PD_ROUTER_SGLANG_LOGS"),
        };
        let start = |name, role, pod| Server::start(name, role, pod, &installation);
        let enough = available_memory_kib() >= MEMORY_OF_FOUR_KIB;
        let manifests = Manifests::documents();
        // Before the engines, so that no byte of theirs escapes it.
        let agent = Agent::start(manifests.path());
        let mut world = World {
            prefill: start("prefill", Role::Prefill, pods.prefill),
            second: enough.then(|| start("second", Role::Prefill, pods.second)),
            decode: start("decode", Role::Decode, pods.decode),
            reference: start("reference", Role::Reference, pods.reference),
            agent,
            manifests,
        };
        world.all_ready(true);
        for server in world.servers() {
            server.serves().await;
        }
        world
    }

    /// A gateway that has heard from every engine.
    pub(crate) async fn gateway(&self, flags: &[&str]) -> Gateway {
        self.all_ready(true);
        self.gateway_as_is(flags).await
    }

    /// The same, that uses the first prefill alone.
    pub(crate) async fn gateway_of_one_pair(&self, flags: &[&str]) -> Gateway {
        self.all_ready(false);
        self.gateway_as_is(flags).await
    }

    async fn gateway_as_is(&self, flags: &[&str]) -> Gateway {
        let gateway = Gateway::start_with(&self.manifests, flags).await;
        let engines = self.engines().count();
        eventually("all engines have told what they are", IDLE, async || {
            let fleet = gateway.fleet().await.to_string();
            (fleet.matches("page_size").count() >= engines).then_some(())
        })
        .await;
        gateway
    }

    /// Writes the pods; the second prefill's is ready or not.
    fn all_ready(&self, second: bool) {
        for server in self.engines() {
            let role = if server.role == Role::Decode { "decode" } else { "prefill" };
            let ready = second || server.name != "second";
            let pod = manifests::Pod::new(server.name, role, server.ip());
            self.manifests.put_pod(&manifests::Pod { ready, ..pod });
        }
    }

    /// The engines that work in pairs.
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
    pub(crate) fn pair(&self) -> Pair {
        let address = |server: &Server| SocketAddr::new(server.ip(), ENGINE_PORT);
        Pair { prefill: address(&self.prefill), decode: address(&self.decode) }
    }

    /// Waits until the first prefill has a request.
    pub(crate) async fn prefill_computes(&self) {
        eventually("prefill has the request", IDLE, async || {
            let load = self.prefill.load().await;
            let waits = load["disaggregation"]["prefill_bootstrap_queue_reqs"] != 0;
            let runs = load["num_running_reqs"] != 0 || load["num_waiting_reqs"] != 0;
            (waits || runs).then_some(())
        })
        .await;
    }

    /// What an earlier check has left broken works again.
    pub(crate) async fn heal(&mut self) {
        for server in self.servers() {
            if server.has_ended() {
                server.restart().await;
            } else {
                server.thaw();
            }
        }
    }

    /// Waits until no engine holds a request or any KV but the prefix cache's.
    pub(crate) async fn idle(&self) {
        for server in self.engines() {
            let what = format!("{} is idle", server.name);
            eventually(&what, IDLE, async || {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let load = server.load().await;
                holds_nothing(&load).then_some(())
            })
            .await;
        }
    }

    pub(crate) fn reference(&self) -> Client {
        self.reference.client()
    }
}

/// Whether an engine's load speaks of no request, in any of its queues.
fn holds_nothing(load: &Value) -> bool {
    let queues = load["disaggregation"].as_object();
    let queued = queues.into_iter().flatten().filter(|(name, _)| name.ends_with("_reqs"));
    load["num_running_reqs"] == 0
        && load["num_waiting_reqs"] == 0
        && queued.into_iter().all(|(_, count)| count == 0)
}

/// What `cargo xtask test real-sglang` has made ready.
pub(crate) fn setting(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value.unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test real-sglang`")).into()
}

fn available_memory_kib() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").expect("the kernel tells of memory");
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.expect("it tells what is available")
}
