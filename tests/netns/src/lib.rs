//! Network namespaces for tests and the demo: [`Namespace`] is one, [`Node`] is a node of a cluster
//! with its pods and a machine outside, [`lossy_link`] and [`impaired_link`] connect two namespaces
//! by links that lose or delay frames. Everything needs root, and is removed with the process.

pub mod impaired_link;
pub mod lossy_link;
mod namespace;
mod node;
mod tap;

pub use namespace::Namespace;
pub use node::{Node, PodNetwork, Topology, reserve_number, route_pod};
