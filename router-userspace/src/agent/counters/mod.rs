//! The counters: read from the maps, turned into rates, and into the records of load frames.

pub(in crate::agent) mod coverage;
pub(in crate::agent) mod kv;
pub(in crate::agent) mod links;
pub(in crate::agent) mod pairs;
pub(in crate::agent) mod queue_pairs;
pub(in crate::agent) mod rolling_stats;
pub(in crate::agent) mod sampler;
