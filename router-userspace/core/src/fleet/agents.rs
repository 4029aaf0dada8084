//! [`AgentAddress`]: where an agent listens, and which node it reports on.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

/// One agent, as a source of agents lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AgentAddress {
    pub address: SocketAddr,
    /// The agent's node. Its records about pods of another node are ignored. `None` is unknown.
    pub node: Option<Arc<str>>,
    /// `namespace/pod`, or another name from the source.
    pub name: Arc<str>,
}
