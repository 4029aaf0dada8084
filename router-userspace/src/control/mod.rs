//! The control plane: manifests or flags in, [`Fleet`](router_core::fleet::Fleet)s out.
//!
//! Sources ([`files`], [`flags`]) feed typed objects into the [`Index`]; [`run()`] publishes the
//! fleet that it builds whenever something has changed.

pub mod document;
mod duration;
mod fields;
pub mod files;
pub mod flags;
#[cfg(test)]
mod golden;
mod index;
pub mod objects;
mod run;

pub use index::{Index, Source};
pub use run::{Feed, POLL_INTERVAL, run};
