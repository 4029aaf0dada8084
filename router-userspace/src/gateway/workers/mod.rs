//! What the gateway asks of every worker at intervals: health, engine information and load.

pub(crate) mod engine_load;
pub(crate) mod probe;
