//! The pure rooms of pd-router. Nothing here knows a socket, a file, a clock or chance:
//! time, randomness and load are arguments.
//!
//! Rooms in reading order: [`pair`], [`fleet`], [`route`], [`schedule`], [`sglang`], [`sample`],
//! [`counter_window`], [`score`], [`frame`].
#![forbid(unsafe_code)]

pub mod counter_window;
pub mod fleet;
pub mod frame;
pub mod pair;
pub mod provenance;
pub mod route;
pub mod sample;
pub mod schedule;
pub mod score;
pub mod sglang;

// The harness that the fuzz targets call is outside of the crate: it names it as they do.
#[cfg(test)]
extern crate self as router_core;
#[cfg(test)]
#[path = "../fuzz/laws.rs"]
mod laws;
