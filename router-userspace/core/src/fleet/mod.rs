//! The fleet: one immutable snapshot of the topology, and the live workers that it refers to.
//!
//! The topology (roles, readiness, compatible engines) is replaced as a whole. Load and health change
//! inside each [`Worker`], which outlives the snapshots that refer to it.

mod adaptive_ewma;
mod agents;
mod allocation;
mod backend_tls;
mod engine_info;
mod engine_load;
mod ghosts;
mod health;
mod lease_history;
mod links;
mod load;
mod model_names;
mod outcomes;
mod pool;
mod pool_history;
mod prefill_queue;
mod problem;
mod ranks;
mod rates;
mod readiness;
mod relative_speed;
mod retry_budget;
mod service;
mod shortage;
mod snapshot;
mod worker;

pub use adaptive_ewma::{AdaptiveEwma, FRESH_HALF_LIFE_MS, HALF_LIFE_MS, Prior};
pub use agents::AgentAddress;
pub use backend_tls::{AltName, BackendTls};
pub use engine_info::EngineInfo;
pub use engine_load::{EngineLoad, EngineLoadCell, PolledLoad, RankLoad};
pub use ghosts::{DEFAULT_GHOST_MS, GhostLeases, GhostWeight, MAX_GHOST_MS};
pub use health::{
    ERRORS_TO_OPEN, Health, HealthChange, MAX_OPEN_MS, OPEN_MS, PROBES_TO_OPEN, REFUSED_MS,
    RELAPSE_MS, Verdict,
};
pub use lease_history::LeaseHistory;
pub use links::{Link, LinkPrior, LinkTable};
pub use load::{Load, LoadCell, STALE_MS};
pub use model_names::ModelError;
pub use outcomes::{
    MIN_FAILURES, MIN_PEER_REQUESTS, OUTCOME_WINDOW_MS, OutcomeCounts, Outcomes, RequestKind,
};
pub use pool::{
    CompatibleSet, Excluded, Member, ObjectName, Phase, Pool, Profile, Role, host_text,
};
pub use pool_history::PoolHistory;
pub use prefill_queue::{PrefillQueue, QueueHead};
pub use problem::Problem;
pub use ranks::{MAX_RANKS, RankAssignment, Ranks, Steering};
pub use rates::{EngineRates, PrefillSample, RateEstimators};
pub use readiness::{READINESS_WINDOW_MS, ReadinessGuard, ReadinessObservation};
pub use relative_speed::{RelativeSpeed, SpeedSpread, SpeedTuning};
pub use retry_budget::{MIN_RETRIES_PER_SECOND, RETRY_PERCENT, RetryBudget};
pub use service::ServiceBackend;
pub use snapshot::{Fleet, ListenPort};
pub use worker::{Lease, OnRelease, Usage, Weight, Worker, WorkerKey, WorkerLimits, cache_of};
