//! [`BackendTls`]: how the gateway speaks TLS to the endpoints of a Service.

use std::sync::Arc;

use serde::Serialize;

/// TLS to the endpoints of a Service (BackendTLSPolicy).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct BackendTls {
    /// The server name in the handshake. Without `alt_names` the certificate must be valid for it.
    pub hostname: Arc<str>,
    /// Names of which the certificate must have at least one. Empty: it must have `hostname`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alt_names: Vec<AltName>,
    /// The certificates of the trusted authorities, in PEM.
    #[serde(skip)]
    pub authorities: Arc<str>,
}

/// A subject alternative name of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AltName {
    Hostname(Arc<str>),
    /// For example a SPIFFE id. Compared byte for byte.
    Uri(Arc<str>),
}
