//! The pods: where they are read from, which ids and ports they have, and what the maps hold of them.

pub(in crate::agent) mod control_ports;
pub(in crate::agent) mod existing_connections;
pub(in crate::agent) mod listening_ports;
pub(in crate::agent) mod map_contents;
pub(in crate::agent) mod registered_pod;
pub(in crate::agent) mod registry;
pub(in crate::agent) mod source;
