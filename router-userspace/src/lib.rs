//! The crate that does I/O: sockets, files, clocks, the cluster; and the binary.
//!
//! Modules in reading order: [`config`] (flags to settings), [`control`] (objects of a cluster to a
//! fleet), [`gateway`] (the life of a request), [`agent`] (the node's BPF programs and counters),
//! [`feedback`] (load frames from agents to gateways), [`simulate`] (the model of a fleet), [`top`] (a
//! gateway in a terminal). All of them use [`certificates`] (of the fleet's listeners), `client_body`, `clock`, `http_client`,
//! `scheduler_view`, [`metrics`], [`stdout`], `supervise` (what the panic of a task does), [`telemetry`] and
//! [`token`].

pub mod agent;
pub mod certificates;
pub mod check;
mod clock;
pub mod config;
mod connection_slots;
pub mod control;
pub mod feedback;
pub mod gateway;
mod http_client;
#[cfg(any(test, fuzzing))]
pub mod laws;
pub mod metrics;
mod open_files;
mod rooms;
mod scheduler_view;
mod send_timeout;
pub mod shutdown;
pub mod simulate;
pub mod stdout;
mod supervise;
pub mod telemetry;
pub mod token;
pub mod top;

/// The commit that was built, if the build names it in `PD_ROUTER_COMMIT`.
pub const COMMIT: &str = match option_env!("PD_ROUTER_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
