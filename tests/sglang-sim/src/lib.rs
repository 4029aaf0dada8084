//! A simulator of SGLang's prefill/decode servers, without a model: the parts that a router
//! notices.
//!
//! Reading order: [`config`] (settings), `engine` (the handle for tests), `process` (state until a
//! kill), `leg` (one sequence on a prefill, a decode or an ordinary server), `rank` (rooms and
//! queues), `kv` (messages and bytes between engines), `registry` and `discovery` (how a decode
//! finds a prefill), `http` (the API), `script` (injected failures).

mod active_scripts;
pub mod config;
mod discovery;
mod engine;
mod gauge;
mod http;
mod kv;
mod leg;
mod model;
mod prefix_cache;
mod process;
mod rank;
mod recorder;
mod registry;
mod script;
mod socket;
mod stats;
mod supervisor;
pub mod tokenizer;

pub use config::{Config, Role, Timing, Version};
pub use engine::{Engine, Occupancy};
pub use recorder::{Abort, KvTraffic, Received};
pub use script::{Action, RequestMatch, Script};
