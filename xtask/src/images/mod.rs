//! Images of containers, made without a container engine.

pub(crate) mod archive;
