//! Whose traffic it is: from queue pairs to processes to pods, and estimates where nothing counts.

mod arrivals;
mod iwarp;
mod kv_estimate;
mod ledger;
mod qp_owners;

pub use arrivals::{ArrivedTraffic, QueuePairEntry};
pub use kv_estimate::KvRequests;

pub(in crate::agent) use arrivals::Arrivals;
pub(in crate::agent) use iwarp::IwarpConnections;
pub(in crate::agent) use kv_estimate::KvEstimates;
pub(in crate::agent) use ledger::Ledger;
pub(in crate::agent) use qp_owners::{Holders, Owner, OwnerLookup, ProcessTable, QueuePairStates};
