//! The control plane: builds a [`Fleet`](router_core::fleet::Fleet) from a cluster, manifests or flags.
//!
//! Sources ([`kube`], [`files`], [`flags`]) write typed objects to the [`Index`]. [`run()`] builds and
//! publishes a new fleet whenever the index has changed.

mod api_resource;
pub mod document;
pub(crate) mod duration;
mod fields;
pub mod files;
pub mod flags;
pub mod gateway_service;
#[cfg(test)]
mod golden;
mod index;
pub mod kube;
#[cfg(any(test, fuzzing))]
pub(crate) mod laws;
mod leader_election;
pub mod objects;
mod run;
mod status_merge;
mod status_writer;
pub mod watch;
mod write_report;

pub use index::{
    CONTROLLER_NAME, DEFAULT_BOOTSTRAP_PORT, Exposure, GatewayService, Index, ObjectStatus, Source,
    StatusPatch,
};
pub use run::{Feed, POLL_INTERVAL, read_manifests, run};
