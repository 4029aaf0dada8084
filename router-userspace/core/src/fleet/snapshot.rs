//! [`Fleet`]: the snapshot of everything that a request reads.

use std::sync::Arc;

use serde::Serialize;

use super::{AgentAddress, Member, ObjectName, Pool, Problem, ServiceBackend, Worker};
use crate::route::Listener;

/// The topology at one moment: immutable, swapped whole.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fleet {
    /// Counts the snapshots of a process; 0 is the empty one before the first.
    pub generation: u64,
    pub listeners: Vec<Listener>,
    /// Sorted by name; the ones that no route names as well.
    pub pools: Vec<Arc<Pool>>,
    /// The Service ports that routes name, sorted.
    pub services: Vec<Arc<ServiceBackend>>,
    /// The agents that the source names, sorted by address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentAddress>,
    pub problems: Vec<Problem>,
}

/// A port of this process to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub number: u16,
    /// Clients speak TLS there.
    pub secure: bool,
}

impl Fleet {
    /// The distinct ports to listen on, in ascending order.
    pub fn ports(&self) -> Vec<Port> {
        let port = |one: &Listener| Port { number: one.socket_port, secure: one.secure() };
        let mut ports: Vec<Port> = self.listeners.iter().map(port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The pool of this name.
    pub fn pool(&self, name: &ObjectName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// Every member of every pool. A worker of two pools comes twice.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Pool>, &Member)> {
        self.pools.iter().flat_map(|pool| pool.members.iter().map(move |member| (pool, member)))
    }

    /// Every worker, of pools and of Services. One that stands in several places comes as often.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        let members = self.members().map(|(_, member)| &member.worker);
        members.chain(self.services.iter().flat_map(|service| &service.endpoints))
    }
}
