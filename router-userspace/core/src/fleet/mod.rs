//! The fleet: one immutable snapshot of the topology, and the live workers beneath it.
//!
//! Topology (roles, readiness, which engines fit) is swapped whole; load and health change
//! inside each [`Worker`], which outlives the snapshots that name it.

mod agents;
mod engine_load;
mod facts;
mod health;
mod learned;
mod line;
mod links;
mod load;
mod own;
mod pool;
mod problem;
mod ranks;
mod rates;
mod service;
mod snapshot;
mod worker;

pub use agents::AgentAddress;
pub use engine_load::{EngineCell, EngineLoad, OfRank, Reported};
pub use facts::Facts;
pub use health::{ERRORS_TO_OPEN, Health, OPEN_MS, PROBES_TO_OPEN, Verdict};
pub use learned::{FRESH_HALF_LIFE_MS, HALF_LIFE_MS, Learned, Prior};
pub use line::{Head, Line};
pub use links::{Link, LinkPrior, Links};
pub use load::{Load, LoadCell, STALE_MS};
pub use own::Own;
pub use pool::{Fit, Member, ObjectName, Phase, Pool, Profile, Role, Unfit, host_text};
pub use problem::Problem;
pub use ranks::{MOST_RANKS, Ranks, Steered, Steering};
pub use rates::{Experience, Rates};
pub use service::ServiceBackend;
pub use snapshot::{Fleet, Port};
pub use worker::{Lease, Limits, Released, Usage, Weight, Worker, WorkerKey, cache_of};
