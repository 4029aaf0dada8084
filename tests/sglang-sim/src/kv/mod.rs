//! KV transfer between engines: ZMTP messages for control, TCP connections for the bytes.

pub(crate) mod control;
pub(crate) mod data;
pub(crate) mod zmtp;
