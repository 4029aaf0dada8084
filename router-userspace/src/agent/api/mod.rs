//! The agent's HTTP API: `/v1/loads`, `/v1/loads/stream`, `/metrics`, `/livez` and `/readyz`.

pub(in crate::agent) mod loads;
pub(in crate::agent) mod metrics;
pub(in crate::agent) mod server;
