//! The core crate of pd-router. It does no I/O: time, randomness and load are arguments.
//!
//! Modules in reading order: [`pair`], [`provenance`], [`fleet`], [`route`], [`schedule`],
//! [`sglang`], [`timeline`], [`inner_parts`], [`sample`], [`counter_window`], [`score`], [`frame`], [`fnv`].
#![forbid(unsafe_code)]

pub mod counter_window;
pub mod fleet;
pub mod fnv;
pub mod frame;
pub mod inner_parts;
#[cfg(any(test, fuzzing))]
pub mod laws;
pub mod pair;
pub mod provenance;
pub mod route;
pub mod sample;
pub mod schedule;
pub mod score;
pub mod sglang;
pub mod timeline;
