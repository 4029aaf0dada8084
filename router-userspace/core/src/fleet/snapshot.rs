//! [`Fleet`]: the snapshot of the topology that a request reads.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{AgentAddress, Member, ObjectName, Pool, Problem, ServiceBackend, Worker};
use crate::route::Listener;

/// The topology at one moment. It is immutable; a change replaces the whole snapshot.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fleet {
    /// Number of the snapshot in this process; 0 is the empty one before the first.
    pub generation: u64,
    pub listeners: Vec<Listener>,
    /// Listeners that get no requests, such as one without a certificate, with their routes.
    #[serde(skip)]
    pub unserved_listeners: Vec<Listener>,
    /// Sorted by name, including pools that no route names.
    pub pools: Vec<Arc<Pool>>,
    /// The Service ports that routes name, sorted.
    pub services: Vec<Arc<ServiceBackend>>,
    /// The agents that the source lists, sorted by address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentAddress>,
    /// The admin ports of the gateways of the same installation, this one among them, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<SocketAddr>,
    /// Workers that are candidates although Kubernetes reports their pods as not ready.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "names")]
    pub distrusted: Vec<Arc<Worker>>,
    pub problems: Vec<Problem>,
}

fn names<S: Serializer>(workers: &[Arc<Worker>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(workers.iter().map(|worker| &worker.name))
}

/// A port of this process to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenPort {
    pub number: u16,
    /// Whether clients use TLS on this port.
    pub secure: bool,
}

impl Fleet {
    /// Returns the distinct ports to listen on, in ascending order.
    pub fn ports(&self) -> Vec<ListenPort> {
        let port = |one: &Listener| ListenPort { number: one.socket_port, secure: one.secure() };
        let mut ports: Vec<ListenPort> = self.listeners.iter().map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Returns the pool of this name.
    pub fn pool(&self, name: &ObjectName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// Returns every member of every pool. A worker of two pools appears twice.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Pool>, &Member)> {
        self.pools.iter().flat_map(|pool| pool.members.iter().map(move |member| (pool, member)))
    }

    /// Returns every worker of pools and Services. A worker of several pools or Services appears as
    /// often.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        let members = self.members().map(|(_, member)| &member.worker);
        members.chain(self.services.iter().flat_map(|service| &service.endpoints))
    }
}
