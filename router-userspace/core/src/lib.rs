//! The pure rooms of pd-router. Nothing here knows a socket, a file, a clock or chance:
//! time, randomness and load are arguments.
//!
//! Rooms in reading order: [`pair`], [`fleet`], [`route`], [`schedule`], [`sglang`], [`sample`],
//! [`trail`], [`score`], [`frame`].
#![forbid(unsafe_code)]

pub mod fleet;
pub mod frame;
pub mod pair;
pub mod route;
pub mod sample;
pub mod schedule;
pub mod score;
pub mod sglang;
pub mod simulate;
pub mod trail;
