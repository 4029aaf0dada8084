//! TLS with clients: the certificate follows the name that a client asks for, and the snapshot.
//!
//! Each handshake reads the current fleet, so that a rotated Secret counts from the next connection
//! on and no port is opened anew.

use std::sync::Arc;

use router_core::route::{self, Listener};
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use tokio_rustls::TlsAcceptor;

use crate::gateway::fleet_handle::FleetHandle;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// Speaks TLS on `port`, one of this process.
pub(crate) fn acceptor(fleet: &Arc<FleetHandle>, port: u16) -> TlsAcceptor {
    let certificates = Certificates { fleet: Arc::clone(fleet), port };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&VERSIONS)
        .expect("ring speaks both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// The certificates of a port's listeners.
struct Certificates {
    fleet: Arc<FleetHandle>,
    port: u16,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("port", &self.port).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    /// `None`, a name that no listener has, ends the handshake.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fleet = self.fleet.load();
        let listener = route::listener(&fleet, self.port, hello.server_name())?;
        choose(listener, &hello)
    }
}

/// Of a listener's certificates that the client can check: one with the name that it asks for, else
/// the first.
fn choose(listener: &Listener, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
    let all = listener.identities.iter().filter_map(|one| one.signer::<CertifiedKey>());
    let mut usable =
        all.filter(|one| one.key.choose_scheme(hello.signature_schemes()).is_some()).peekable();
    let first = usable.peek().cloned();
    if listener.identities.len() < 2 {
        return first;
    }
    let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
    let Some(name) = name else { return first };
    usable.find(|one| proves(one, &name)).or(first)
}

fn proves(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let Ok(certificate) = key.end_entity_cert() else { return false };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
