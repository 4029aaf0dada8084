//! [`ServiceBackend`]: a plain Service behind a route, proxied without pairing.

use std::sync::Arc;

use serde::Serialize;

use super::{BackendTls, ObjectName, Worker};

/// One port of a Service and its ready endpoints.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceBackend {
    pub name: ObjectName,
    pub port: u16,
    /// The backend uses HTTP/2 without TLS (`appProtocol: kubernetes.io/h2c`).
    pub h2c: bool,
    /// The endpoints are reached over TLS, with HTTP/1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<BackendTls>>,
    /// Sorted by address. Without endpoints a request gets 503.
    pub endpoints: Vec<Arc<Worker>>,
}
