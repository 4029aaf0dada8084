//! [`AgentAddress`]: where an agent answers, and which node it speaks of.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

/// One agent as a source names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AgentAddress {
    pub address: SocketAddr,
    /// Its node: of pods of another one it is not believed. `None` is not told.
    pub node: Option<Arc<str>>,
    /// `namespace/pod`, or what else names it.
    pub name: Arc<str>,
}
