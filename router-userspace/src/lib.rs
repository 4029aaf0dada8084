//! The part of pd-router that meets the world: sockets, files, clocks, the cluster.
//!
//! Rooms in reading order: [`config`] (flags to settings), [`control`] (documents to fleet),
//! [`gateway`] (a request's life), [`agent`] (what the kernel counts), [`feedback`] (from one
//! to the other), [`simulate`] (a model of a fleet), `admin`, [`metrics`], [`telemetry`],
//! [`token`].

mod admin;
pub mod agent;
pub mod config;
pub mod control;
pub mod feedback;
pub mod gateway;
pub mod metrics;
pub mod simulate;
pub mod telemetry;
pub mod token;
