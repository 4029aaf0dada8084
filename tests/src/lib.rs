//! The harness: a real gateway process, simulated engines and a small client, for tests that
//! look at pd-router from outside.
//!
//! In reading order: [`Fleet`] starts engines and writes the manifests that name them,
//! [`Gateway`] serves those manifests, [`Client`] sends requests to it, and [`received`] has what
//! the engines got. Every server stands on a loopback address of its own, so that tests run side by
//! side with the ports that a cluster would use.
//!
//! Tests in network namespaces (crate `netns`) use [`agent`] and [`traffic`] on one node, or
//! [`site`]: a node with engines and an agent, and gateways outside. Tests of the admin port's page look at
//! it with a [`browser`].

pub mod agent;
pub mod balancer;
pub mod browser;
pub mod certificate;
pub mod client;
pub mod cluster;
pub mod eventually;
pub mod fleet;
pub mod folder;
pub mod gateway;
pub mod loopback;
pub mod manifests;
pub mod node_manifests;
pub mod patience;
pub mod process;
pub mod received;
pub mod reliability;
pub mod site;
pub mod sse;
pub mod traffic;

pub use balancer::Balancer;
pub use client::{Answer, Client, Stream};
pub use cluster::Cluster;
pub use eventually::eventually;
pub use fleet::Fleet;
pub use gateway::Gateway;
pub use manifests::Manifests;
pub use patience::patience;
