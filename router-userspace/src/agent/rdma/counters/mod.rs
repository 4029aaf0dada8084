//! What a device counts: the counters, their drivers' names, and what readings say over time.

mod deltas;
mod device_counters;
pub(in crate::agent) mod names;
mod staleness;

pub(in crate::agent) use deltas::{CounterHistory, ReadingChange};
pub(in crate::agent) use device_counters::{Counter, CounterValues, DeviceCounters};
pub(in crate::agent) use staleness::{ActivityEvidence, Freshness, StalenessDetector};
