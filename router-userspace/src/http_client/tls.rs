//! [`TlsClients`]: HTTP clients that speak TLS to the endpoints of Services, one per
//! [`BackendTls`], since a connection must not be shared by requests that trust others.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
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

use super::OutgoingBody;

/// A client whose connections are made with one [`BackendTls`]; cheap to clone.
pub(crate) type TlsClient = Client<TimedConnector, OutgoingBody>;

/// The clients of all Services with TLS.
pub(super) struct TlsClients {
    builder: hyper_util::client::legacy::Builder,
    connector: HttpConnector,
    connect_timeout: Duration,
    clients: Mutex<HashMap<Arc<BackendTls>, TlsClient>>,
}

impl TlsClients {
    pub(super) fn new(
        builder: hyper_util::client::legacy::Builder,
        mut connector: HttpConnector,
        connect_timeout: Duration,
    ) -> TlsClients {
        connector.enforce_http(false);
        TlsClients { builder, connector, connect_timeout, clients: Mutex::default() }
    }

    /// The client for these settings.
    ///
    /// # Errors
    /// The settings are invalid, which the control plane has reported.
    pub(super) fn get(&self, tls: &Arc<BackendTls>) -> Result<TlsClient, String> {
        if let Some(known) = self.clients.lock().get(tls) {
            return Ok(known.clone());
        }
        let name = ServerName::try_from(tls.hostname.to_string());
        let name = name.map_err(|_| format!("{:?} is not a host name", tls.hostname))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(tls)?)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(name))
            .enable_http1()
            .wrap_connector(self.connector.clone());
        let connector = TimedConnector { connector, limit: self.connect_timeout };
        let client: TlsClient = self.builder.build(connector);
        self.clients.lock().insert(Arc::clone(tls), client.clone());
        Ok(client)
    }

    /// Drops the clients that no Service of `fleet` needs.
    pub(super) fn retain_used(&self, fleet: &Fleet) {
        let used = |tls: &Arc<BackendTls>| {
            fleet.services.iter().any(|service| service.tls.as_ref() == Some(tls))
        };
        self.clients.lock().retain(|tls, _| used(tls));
    }
}

impl fmt::Debug for TlsClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.clients.lock().keys()).finish()
    }
}

/// Limits the time of a connection and its handshake together.
#[derive(Clone)]
pub(crate) struct TimedConnector {
    connector: HttpsConnector<HttpConnector>,
    limit: Duration,
}

impl Service<Uri> for TimedConnector {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
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
