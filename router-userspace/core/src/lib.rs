//! The pure rooms of pd-router. Nothing here knows a socket, a file, a clock or chance:
//! time, randomness and load are arguments.
//!
//! Rooms in reading order: [`pair`], [`fleet`], [`route`], [`schedule`], [`sglang`], [`sample`].
#![forbid(unsafe_code)]

pub mod fleet;
pub mod pair;
pub mod route;
pub mod sample;
pub mod schedule;
pub mod sglang;
pub mod simulate;
