//! The control plane: a cluster, manifests or flags in, [`Fleet`](router_core::fleet::Fleet)s out.
//!
//! Sources ([`kube`], [`files`], [`flags`]) feed typed objects into the [`Index`]; [`run()`] publishes the
//! fleet that it builds whenever something has changed.

pub mod document;
mod duration;
mod fields;
pub mod files;
pub mod flags;
pub mod fronts;
#[cfg(test)]
mod golden;
mod index;
pub mod kube;
mod lead;
mod merge;
pub mod objects;
mod run;
mod status;
pub mod watched;

pub use index::{CONTROLLER_NAME, Exposure, Front, Index, Source, Standing, Told};
pub use run::{Feed, POLL_INTERVAL, run};
