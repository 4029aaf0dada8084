//! A program and library that behaves like SGLang's prefill/decode servers where it hurts.
//!
//! Reading order: [`config`] (what an engine is told), `engine` (what tests hold), `life` (one
//! process's worth of state), `leg` (a sequence on a prefill, a decode, or an ordinary server),
//! `rank` (where two legs meet), `kv` (what moves between engines), `registry` and `peers` (how
//! they find each other), `http` (what clients see), `script` (what goes wrong).

pub mod config;
mod core;
mod count;
mod engine;
mod http;
mod kv;
mod ledger;
mod leg;
mod life;
mod meters;
mod peers;
mod playbook;
mod rank;
mod registry;
mod script;
pub mod token;
mod valve;
mod words;

pub use config::{Config, Role, Timing, Version};
pub use engine::{Engine, Occupancy};
pub use ledger::{Abort, KvTraffic, Received};
pub use script::{Action, Match, Script};
