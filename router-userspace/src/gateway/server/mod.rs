//! Client connections: one socket a port, TLS, and idle and stalled connections.

pub(crate) mod activity;
pub(crate) mod listener;
pub(crate) mod tls;
