//! The part of pd-router that meets the world: sockets, files, clocks, the cluster.

pub mod control;
