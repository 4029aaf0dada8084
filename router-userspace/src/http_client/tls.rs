//! [`TlsClients`]: HTTP clients that speak TLS to the endpoints of Services, one per
//! [`BackendTls`], since a connection must not be shared by requests that trust others.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use http::uri::Scheme;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use router_core::fleet::{AltName, BackendTls, Fleet};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use tower::{BoxError, Service};

use super::http1::Http1Client;
use super::idle_connections::IdleLimits;
use super::watched_stream::WatchedConnector;

/// A client whose connections are made with one [`BackendTls`]; cheap to clone.
pub(super) type TlsClient = Http1Client<TimedConnector>;

/// The clients of all Services with TLS.
pub(super) struct TlsClients {
    connector: HttpConnector,
    connect_timeout: Duration,
    limits: IdleLimits,
    /// Those of the fleet, by the address of their settings: a request hashes no certificates, and takes no
    /// lock.
    clients: ArcSwap<HashMap<usize, KnownClient>>,
}

/// Settings, and their client once a request has needed it.
#[derive(Clone)]
struct KnownClient {
    /// As long as it is kept, no other settings have its address.
    tls: Arc<BackendTls>,
    client: ClientCell,
}

type ClientCell = Arc<OnceLock<Result<TlsClient, String>>>;

impl TlsClients {
    pub(super) fn new(
        mut connector: HttpConnector,
        connect_timeout: Duration,
        limits: IdleLimits,
    ) -> TlsClients {
        connector.enforce_http(false);
        TlsClients { connector, connect_timeout, limits, clients: ArcSwap::default() }
    }

    /// The client for these settings. A request whose settings have left the fleet gets a client of its own.
    ///
    /// # Errors
    /// The settings are invalid, which the control plane has reported.
    pub(super) fn get(&self, tls: &Arc<BackendTls>) -> Result<TlsClient, String> {
        let cell = self.clients.load().get(&address(tls)).map(|known| Arc::clone(&known.client));
        cell.unwrap_or_default().get_or_init(|| self.client(tls)).clone()
    }

    fn client(&self, tls: &BackendTls) -> Result<TlsClient, String> {
        let name = ServerName::try_from(tls.hostname.to_string());
        let name = name.map_err(|_| format!("{:?} is not a host name", tls.hostname))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(tls)?)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(name))
            .enable_http1()
            .wrap_connector(WatchedConnector(self.connector.clone()));
        let connector = TimedConnector { connector, limit: self.connect_timeout };
        Ok(Http1Client::new(connector, Scheme::HTTPS, self.limits))
    }

    /// Takes the settings of a fleet. Equal settings keep their client; those that no Service has are
    /// dropped with theirs.
    pub(super) fn follow(&self, fleet: &Fleet) {
        let before = self.clients.load();
        let mut by_content: HashMap<Arc<BackendTls>, ClientCell> = HashMap::new();
        for known in before.values() {
            by_content.insert(Arc::clone(&known.tls), Arc::clone(&known.client));
        }
        let mut clients = HashMap::new();
        for tls in fleet.services.iter().filter_map(|service| service.tls.as_ref()) {
            clients.entry(address(tls)).or_insert_with(|| {
                let client = by_content.entry(Arc::clone(tls)).or_default();
                KnownClient { tls: Arc::clone(tls), client: Arc::clone(client) }
            });
        }
        self.clients.store(Arc::new(clients));
    }
}

fn address(tls: &Arc<BackendTls>) -> usize {
    Arc::as_ptr(tls).addr()
}

impl fmt::Debug for TlsClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.clients.load().values().map(|known| &known.tls)).finish()
    }
}

/// Limits the time of a connection and its handshake together.
#[derive(Clone)]
pub(crate) struct TimedConnector {
    connector: HttpsConnector<WatchedConnector>,
    limit: Duration,
}

impl Service<Uri> for TimedConnector {
    type Response = <HttpsConnector<WatchedConnector> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connected = tokio::time::timeout(self.limit, self.connector.call(uri));
        Box::pin(async move {
            connected.await.unwrap_or_else(|_| {
                let late = "the TLS handshake took longer than --connect-timeout";
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, late).into())
            })
        })
    }
}

/// Reads the certificates of authorities.
///
/// # Errors
/// The text is not PEM, or holds no certificate that can be an authority.
pub(crate) fn authorities(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("it is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("a certificate is invalid: {error}"))?;
    }
    match roots.is_empty() {
        true => Err("it holds no certificate".to_owned()),
        false => Ok(roots),
    }
}

/// Whether a name can be one of a certificate, without wildcards.
pub(crate) fn is_server_name(name: &str) -> bool {
    matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
}

fn client_config(tls: &BackendTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let roots = Arc::new(authorities(&tls.authorities)?);
    if tls.alt_names.is_empty() {
        return Ok(config.with_root_certificates(roots).with_no_client_auth());
    }
    let signatures =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
    let verifier = AltNameVerifier { roots, provider, signatures, names: tls.alt_names.clone() };
    Ok(config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Verifies that a certificate is signed by a trusted authority and has one of some names, rather than
/// that of the handshake.
#[derive(Debug)]
struct AltNameVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    signatures: Arc<WebPkiServerVerifier>,
    names: Vec<AltName>,
}

impl AltNameVerifier {
    fn has(
        certificate: &ParsedCertificate<'_>,
        end_entity: &CertificateDer<'_>,
        name: &AltName,
    ) -> bool {
        match name {
            AltName::Hostname(host) => ServerName::try_from(&**host)
                .is_ok_and(|host| verify_server_name(certificate, &host).is_ok()),
            AltName::Uri(uri) => webpki::EndEntityCert::try_from(end_entity)
                .is_ok_and(|parsed| parsed.valid_uri_names().any(|known| known == &**uri)),
        }
    }
}

impl ServerCertVerifier for AltNameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match self.names.iter().any(|name| Self::has(&certificate, end_entity, name)) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use router_core::fleet::{ObjectName, ServiceBackend};

    use super::*;

    fn settings(hostname: &str) -> Arc<BackendTls> {
        let authorities = "no certificate".into();
        Arc::new(BackendTls { hostname: hostname.into(), alt_names: Vec::new(), authorities })
    }

    fn fleet(tls: &[&Arc<BackendTls>]) -> Fleet {
        let name = || ObjectName { namespace: "default".into(), name: "shop".into() };
        let service = |tls: &&Arc<BackendTls>| {
            let (tls, endpoints) = (Some(Arc::clone(tls)), Vec::new());
            Arc::new(ServiceBackend { name: name(), port: 443, h2c: false, tls, endpoints })
        };
        Fleet { services: tls.iter().map(service).collect(), ..Fleet::default() }
    }

    fn cell(clients: &TlsClients, tls: &Arc<BackendTls>) -> Option<ClientCell> {
        clients.clients.load().get(&address(tls)).map(|known| Arc::clone(&known.client))
    }

    #[test]
    fn equal_settings_keep_their_client_and_unused_ones_lose_it() {
        let (limit, max_idle) = (Duration::from_secs(1), 1);
        let limits = IdleLimits { timeout: limit, max_idle };
        let clients = TlsClients::new(HttpConnector::new(), limit, limits);
        let (shop, other) = (settings("shop.example"), settings("other.example"));
        clients.follow(&fleet(&[&shop, &shop, &other]));
        assert!(clients.get(&shop).is_err(), "no authority is trusted");
        let before = cell(&clients, &shop).expect("it is of the fleet");
        assert!(before.get().is_some(), "made once, for the first request");
        assert!(cell(&clients, &other).is_some_and(|cell| cell.get().is_none()));
        // The next fleet has the same settings elsewhere in memory.
        let again = settings("shop.example");
        clients.follow(&fleet(&[&again]));
        assert!(cell(&clients, &again).is_some_and(|cell| Arc::ptr_eq(&cell, &before)));
        assert!(cell(&clients, &shop).is_none() && cell(&clients, &other).is_none());
        assert!(clients.get(&shop).is_err(), "a request that runs still gets one");
    }
}
