//! [`ServiceBackend`]: a plain Service behind a route, proxied without pairing.

use std::sync::Arc;

use serde::Serialize;

use super::{ObjectName, Worker};

/// One port of a Service and the endpoints that are ready behind it.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceBackend {
    pub name: ObjectName,
    pub port: u16,
    /// The backend speaks HTTP/2 without TLS (`appProtocol: kubernetes.io/h2c`).
    pub h2c: bool,
    /// Sorted by address; empty is a 503.
    pub endpoints: Vec<Arc<Worker>>,
}
