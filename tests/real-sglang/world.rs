//! The servers of one run, and the manifests that name them.

use std::path::PathBuf;
use std::time::Duration;

use router_tests::manifests;
use router_tests::{Client, Gateway, Manifests, eventually};
use serde_json::Value;

use crate::node::{Node, Pod};
use crate::server::{Installation, Role, Server};

/// For an engine to be done with what it was told to stop. It may be in the middle of a long
/// prompt, and other work may want the CPU.
const IDLE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) prefill: Server,
    pub(crate) decode: Server,
    pub(crate) reference: Server,
    manifests: Manifests,
}

/// Where each server will stand.
pub(crate) struct Pods {
    prefill: Pod,
    decode: Pod,
    reference: Pod,
}

impl World {
    pub(crate) fn pods(node: &Node) -> Pods {
        Pods { prefill: node.pod(2), decode: node.pod(3), reference: node.pod(4) }
    }

    pub(crate) async fn start(pods: Pods) -> World {
        let installation = Installation {
            python: setting("PD_ROUTER_SGLANG_PYTHON"),
            model: setting("PD_ROUTER_SGLANG_MODEL"),
            logs: setting("PD_ROUTER_SGLANG_LOGS"),
        };
        let start = |name, role, pod| Server::start(name, role, pod, &installation);
        let mut world = World {
            prefill: start("prefill", Role::Prefill, pods.prefill),
            decode: start("decode", Role::Decode, pods.decode),
            reference: start("reference", Role::Reference, pods.reference),
            manifests: Manifests::documents(),
        };
        for server in [&world.prefill, &world.decode] {
            let pod = manifests::Pod::new(server.name, server.name, server.ip());
            world.manifests.put_pod(&pod);
        }
        for server in [&mut world.prefill, &mut world.decode, &mut world.reference] {
            server.serves().await;
        }
        world
    }

    /// A gateway that has heard from both engines.
    pub(crate) async fn gateway(&self, flags: &[&str]) -> Gateway {
        let gateway = Gateway::start_with(&self.manifests, flags).await;
        eventually("both engines have told what they are", IDLE, async || {
            let fleet = gateway.fleet().await.to_string();
            (fleet.matches("page_size").count() >= 2).then_some(())
        })
        .await;
        gateway
    }

    /// What an earlier check has left broken works again.
    pub(crate) async fn heal(&mut self) {
        for server in [&mut self.prefill, &mut self.decode, &mut self.reference] {
            if server.has_ended() {
                server.restart().await;
            } else {
                server.thaw();
            }
        }
    }

    /// Waits until neither engine holds a request or any KV but the prefix cache's.
    pub(crate) async fn idle(&self) {
        for server in [&self.prefill, &self.decode] {
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
