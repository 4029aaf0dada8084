//! [`Certificates`]: the certificates and private keys of a fleet's listeners, by id.
//!
//! The control plane reads them from Secrets and publishes them together with the fleet; TLS
//! handshakes look them up. The fleet itself holds ids only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use router_core::fleet::Fleet;
use router_core::route::CertificateId;
use rustls::sign::CertifiedKey;

/// A certificate and its key, with the PEM that they were parsed from.
#[derive(Clone)]
struct Certificate {
    /// Certificates, then the key. Unchanged PEM is not parsed again.
    pem: Arc<[Bytes; 2]>,
    key: Arc<CertifiedKey>,
}

/// The certificates of one fleet.
#[derive(Clone, Default)]
pub struct Certificates {
    by_id: BTreeMap<CertificateId, Certificate>,
    /// Ids are never used twice.
    next: u64,
}

impl Certificates {
    /// The certificate and key of `id`.
    pub(crate) fn get(&self, id: CertificateId) -> Option<Arc<CertifiedKey>> {
        self.by_id.get(&id).map(|certificate| Arc::clone(&certificate.key))
    }

    /// Whether `id` was parsed from this PEM.
    pub(crate) fn is_from(&self, id: CertificateId, pem: &[Bytes; 2]) -> bool {
        self.by_id.get(&id).is_some_and(|certificate| *certificate.pem == *pem)
    }

    /// Adds a certificate under a new id.
    pub(crate) fn add(&mut self, pem: [Bytes; 2], key: CertifiedKey) -> CertificateId {
        let id = CertificateId(self.next);
        self.next += 1;
        self.by_id.insert(id, Certificate { pem: Arc::new(pem), key: Arc::new(key) });
        id
    }

    /// Drops the certificates that no listener of `fleet` presents.
    pub(crate) fn retain_used(&mut self, fleet: &Fleet) {
        let listeners = fleet.listeners.iter();
        let used: Vec<CertificateId> = listeners
            .flat_map(|listener| listener.certificates.iter().map(|certificate| certificate.id))
            .collect();
        self.by_id.retain(|id, _| used.contains(id));
    }
}

impl fmt::Debug for Certificates {
    /// Shows ids only, never a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_id.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use router_core::fleet::ObjectName;
    use router_core::route::{Listener, ServerCertificate};
    use rustls::sign::{Signer, SigningKey};
    use rustls::{SignatureAlgorithm, SignatureScheme};

    use super::*;

    #[derive(Debug)]
    struct NoKey;

    impl SigningKey for NoKey {
        fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            None
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            SignatureAlgorithm::ED25519
        }
    }

    fn key() -> CertifiedKey {
        CertifiedKey::new(Vec::new(), Arc::new(NoKey))
    }

    #[test]
    fn unused_certificates_are_dropped_and_ids_are_not_reused() {
        let pem = |text: &'static str| [Bytes::from_static(text.as_bytes()), Bytes::new()];
        let name = |name: &str| ObjectName { namespace: "n".into(), name: name.into() };
        let mut certificates = Certificates::default();
        let old = certificates.add(pem("old"), key());
        let new = certificates.add(pem("new"), key());
        assert!(certificates.is_from(old, &pem("old")) && !certificates.is_from(old, &pem("new")));
        let mut listener = Listener::new(name("g"), "l".into(), 443, None, Vec::new());
        listener.certificates.push(ServerCertificate { secret: name("s"), id: new });
        let fleet = Fleet { listeners: vec![listener], ..Fleet::default() };
        certificates.retain_used(&fleet);
        assert!(certificates.get(old).is_none() && certificates.get(new).is_some());
        assert_ne!(certificates.add(pem("old"), key()), old);
        let shown = format!("{certificates:?} {}", serde_json::to_string(&fleet).unwrap());
        assert!(shown.contains("\"secret\":\"n/s\"") && !shown.contains("new"), "{shown}");
    }
}
