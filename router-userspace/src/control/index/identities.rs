//! The certificates of HTTPS listeners: which Secrets they name, and what these prove.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use gateway_api::gateways::{GatewayListeners, GatewayListenersTlsCertificateRefs};
use k8s_openapi::api::core::v1::Secret;
use router_core::fleet::ObjectName;
use router_core::route::Identity;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::super::objects::{Key, Kind, Object, kind_of, object_name};
use super::build::{Build, Subject};
use super::{Index, Source, grants, ours};

/// Secrets that are watched; of the ones beyond, in the order of their names, nothing is known.
const MAX_SECRETS: usize = 1_000;
/// A Secret with a certificate and its key.
const TLS_SECRET: &str = "kubernetes.io/tls";
/// The entries of such a Secret.
pub(in crate::control) const TLS_ENTRIES: [&str; 2] = ["tls.crt", "tls.key"];

/// The identities of an HTTPS listener. What is wrong with one leaves the others; a Secret that is
/// broken or gone leaves what it held before.
pub(super) fn resolve(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &GatewayListeners,
    at: &str,
) -> Vec<Arc<Identity>> {
    let references = references(spec);
    if references.is_empty() {
        let reason = "names no Secret: the listener is not served";
        build.complain(
            subject,
            format!("{at}.tls.certificateRefs"),
            "InvalidCertificateRef",
            reason,
        );
    }
    let mut identities = Vec::new();
    for (position, reference) in references.iter().enumerate() {
        let field = format!("{at}.tls.certificateRefs[{position}]");
        let secret = match named(build.index, subject.name, reference) {
            Ok(secret) => secret,
            Err((code, reason)) => {
                build.complain(subject, field, code, reason);
                continue;
            }
        };
        let before = before(build, subject.name, &spec.name, &secret);
        match read(build.index, &secret, before.as_ref()) {
            Ok(identity) => identities.push(identity),
            Err(reason) => {
                let then = match &before {
                    Some(_) => "the certificate before goes on",
                    None => "it is not served",
                };
                let reason = format!("{reason}; {then}");
                build.complain(subject, field, "InvalidCertificateRef", reason);
                identities.extend(before);
            }
        }
    }
    identities
}

/// What a listener of the fleet before had of this Secret.
fn before(
    build: &Build<'_>,
    gateway: &ObjectName,
    listener: &str,
    secret: &ObjectName,
) -> Option<Arc<Identity>> {
    let mut listeners = build.previous.listeners.iter();
    let before = listeners.find(|one| one.gateway == *gateway && *one.name == *listener)?;
    before.identities.iter().find(|identity| identity.secret == *secret).cloned()
}

/// The Secret that a reference names and may name.
fn named(
    index: &Index,
    gateway: &ObjectName,
    reference: &GatewayListenersTlsCertificateRefs,
) -> Result<ObjectName, (&'static str, String)> {
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if (group, kind) != ("", "Secret") {
        let reason = format!("{} is no certificate; a Secret is", kind_of(group, kind));
        return Err(("InvalidCertificateRef", reason));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
    let name = ObjectName { namespace: namespace.into(), name: reference.name.as_str().into() };
    let from = ("Gateway", &*gateway.namespace);
    if !grants::permits(index, from, group, kind, &name) {
        let reason = format!("no ReferenceGrant lets this Gateway name Secret {name}");
        return Err(("RefNotPermitted", reason));
    }
    Ok(name)
}

fn read(
    index: &Index,
    name: &ObjectName,
    before: Option<&Arc<Identity>>,
) -> Result<Arc<Identity>, String> {
    let key = Key { kind: Kind::Secret, name: name.clone() };
    let Some(Object::Secret(secret)) = index.get(&key) else {
        return Err(format!("Secret {name} is not here"));
    };
    if secret.type_.as_deref() != Some(TLS_SECRET) {
        return Err(format!("Secret {name} is not of type {TLS_SECRET}"));
    }
    let pem = TLS_ENTRIES.map(|entry| entry_of(secret, entry));
    if let Some(known) = before.filter(|known| known.is_of(name, &pem)) {
        return Ok(Arc::clone(known));
    }
    let signer = signer(&pem).map_err(|reason| format!("Secret {name}: {reason}"))?;
    Ok(Arc::new(Identity::new(name.clone(), pem, Arc::new(signer))))
}

fn entry_of(secret: &Secret, entry: &str) -> Bytes {
    let text = secret.string_data.as_ref().and_then(|all| all.get(entry));
    match text {
        Some(text) => Bytes::copy_from_slice(text.as_bytes()),
        None => {
            let data = secret.data.as_ref().and_then(|all| all.get(entry));
            data.map(|bytes| Bytes::copy_from_slice(&bytes.0)).unwrap_or_default()
        }
    }
}

fn signer([certificates, key]: &[Bytes; 2]) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(certificates).collect();
    let chain = chain.map_err(|error| format!("tls.crt is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_owned());
    }
    // Whatever is wrong with a key, its bytes are not repeated.
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "tls.key holds no private key in PEM")?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("tls.crt and tls.key cannot be used: {error}"))
}

fn references(spec: &GatewayListeners) -> &[GatewayListenersTlsCertificateRefs] {
    let tls = spec.tls.as_ref();
    tls.and_then(|tls| tls.certificate_refs.as_deref()).unwrap_or_default()
}

/// The Secrets that listeners of a cluster name and may name: the ones to watch.
pub(super) fn secrets(index: &Index) -> BTreeSet<ObjectName> {
    let foreign = ours::foreign(index);
    let mut secrets = BTreeSet::new();
    for (source, object) in index.of_kind(Kind::Gateway) {
        let Object::Gateway(gateway) = object else { continue };
        if *source != Source::Cluster || foreign.contains(&object.key()) {
            continue;
        }
        let name = object_name(&gateway.metadata);
        let listeners = gateway.spec.listeners.iter().filter(|one| one.protocol == "HTTPS");
        secrets
            .extend(listeners.flat_map(references).filter_map(|one| named(index, &name, one).ok()));
    }
    secrets.into_iter().take(MAX_SECRETS).collect()
}
