//! [`ServerCertificate`]: the certificate that a TLS listener presents to clients.

use serde::Serialize;

use crate::fleet::ObjectName;

/// Identifies a certificate and its private key, which the core crate never holds. A Secret whose
/// content changes gets a new id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateId(pub u64);

/// A certificate of a listener: the Secret that it comes from, and its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerCertificate {
    pub secret: ObjectName,
    /// The key of this certificate in the map that is published with the fleet.
    #[serde(skip)]
    pub id: CertificateId,
}
