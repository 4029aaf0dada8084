//! TLS with clients: the certificate depends on the server name that the client asks for.
//!
//! Each handshake reads the current snapshot, so a rotated Secret applies from the next connection on
//! and its port stays open.

use std::sync::Arc;

use router_core::route;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use tokio_rustls::TlsAcceptor;

use crate::gateway::fleet_handle::FleetHandle;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// The TLS acceptor of `port`, a port of this process.
pub(crate) fn acceptor(fleet: &Arc<FleetHandle>, port: u16) -> TlsAcceptor {
    let resolver = CertificateResolver { fleet: Arc::clone(fleet), port };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&VERSIONS)
        .expect("ring supports both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Resolves the certificate among those of a port's listeners.
struct CertificateResolver {
    fleet: Arc<FleetHandle>,
    port: u16,
}

impl std::fmt::Debug for CertificateResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateResolver").field("port", &self.port).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for CertificateResolver {
    /// `None` ends the handshake: no listener has the name that the client asks for.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.fleet.load();
        let listener = route::listener(&snapshot, self.port, hello.server_name())?;
        let certificates = listener.certificates.iter();
        let keys = certificates.filter_map(|one| snapshot.certificates.get(one.id)).collect();
        choose(keys, &hello)
    }
}

/// Of the certificates that the client can verify: one with the name that it asks for, else the
/// first.
fn choose(keys: Vec<Arc<CertifiedKey>>, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
    let several = keys.len() > 1;
    let mut usable = keys
        .into_iter()
        .filter(|one| one.key.choose_scheme(hello.signature_schemes()).is_some())
        .peekable();
    let first = usable.peek().cloned();
    if !several {
        return first;
    }
    let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
    let Some(name) = name else { return first };
    usable.find(|one| is_valid_for(one, &name)).or(first)
}

fn is_valid_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let Ok(certificate) = key.end_entity_cert() else { return false };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
