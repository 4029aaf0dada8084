//! The certificates of HTTPS listeners: which Secrets they name, and what the Secrets contain.

use std::collections::BTreeSet;

use bytes::Bytes;
use gateway_api::gateways::{GatewayListeners, GatewayListenersTlsCertificateRefs};
use k8s_openapi::api::core::v1::Secret;
use router_core::fleet::ObjectName;
use router_core::route::ServerCertificate;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::super::objects::{Key, Kind, Object, kind_of, object_name};
use super::build::{Build, Subject};
use super::{Index, Source, grants, ownership};

/// Maximum number of watched Secrets, in the order of their names. Further ones count as missing.
const MAX_SECRETS: usize = 1_000;
/// The type of a Secret with a certificate and its key.
const TLS_SECRET: &str = "kubernetes.io/tls";
/// The entries of such a Secret: certificates and key.
pub(in crate::control) const TLS_ENTRIES: [&str; 2] = ["tls.crt", "tls.key"];

/// The certificates of an HTTPS listener. A Secret with a problem does not affect the others; if it
/// had a valid certificate before, that one stays.
pub(super) fn resolve(
    build: &mut Build<'_>,
    subject: Subject<'_>,
    spec: &GatewayListeners,
    at: &str,
) -> Vec<ServerCertificate> {
    let references = references(spec);
    if references.is_empty() {
        let reason = "is empty: the listener is not served";
        build.add_problem(
            subject,
            format!("{at}.tls.certificateRefs"),
            "InvalidCertificateRef",
            reason,
        );
    }
    let mut certificates = Vec::new();
    for (position, reference) in references.iter().enumerate() {
        let field = format!("{at}.tls.certificateRefs[{position}]");
        let secret = match named(build.index, subject.name, reference) {
            Ok(secret) => secret,
            Err((code, reason)) => {
                build.add_problem(subject, field, code, reason);
                continue;
            }
        };
        let before = before(build, subject.name, &spec.name, &secret);
        match read(build, &secret, before.as_ref()) {
            Ok(certificate) => certificates.push(certificate),
            Err(reason) => {
                let then = match &before {
                    Some(_) => "the previous certificate stays in use",
                    None => "this certificate is not used",
                };
                let reason = format!("{reason}; {then}");
                build.add_problem(subject, field, "InvalidCertificateRef", reason);
                certificates.extend(before);
            }
        }
    }
    certificates
}

/// The certificate of this Secret that the listener has in the previous fleet.
fn before(
    build: &Build<'_>,
    gateway: &ObjectName,
    listener: &str,
    secret: &ObjectName,
) -> Option<ServerCertificate> {
    let mut listeners = build.previous.listeners.iter();
    let before = listeners.find(|one| one.gateway == *gateway && *one.name == *listener)?;
    before.certificates.iter().find(|certificate| certificate.secret == *secret).cloned()
}

/// The Secret that a reference names, if a ReferenceGrant or the namespace allows it.
fn named(
    index: &Index,
    gateway: &ObjectName,
    reference: &GatewayListenersTlsCertificateRefs,
) -> Result<ObjectName, (&'static str, String)> {
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if (group, kind) != ("", "Secret") {
        let reason = format!("{} is not supported; use a Secret", kind_of(group, kind));
        return Err(("InvalidCertificateRef", reason));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
    let name = ObjectName { namespace: namespace.into(), name: reference.name.as_str().into() };
    let from = ("Gateway", &*gateway.namespace);
    if !grants::permits(index, from, group, kind, &name) {
        let reason = format!("no ReferenceGrant allows this Gateway to reference Secret {name}");
        return Err(("RefNotPermitted", reason));
    }
    Ok(name)
}

/// Parses the certificate of a Secret, unless its content is that of `before`.
fn read(
    build: &mut Build<'_>,
    name: &ObjectName,
    before: Option<&ServerCertificate>,
) -> Result<ServerCertificate, String> {
    let key = Key { kind: Kind::Secret, name: name.clone() };
    let Some(Object::Secret(secret)) = build.index.get(&key) else {
        return Err(format!("Secret {name} does not exist"));
    };
    if secret.type_.as_deref() != Some(TLS_SECRET) {
        return Err(format!("Secret {name} must have type {TLS_SECRET}"));
    }
    let pem = TLS_ENTRIES.map(|entry| entry_of(secret, entry));
    if let Some(before) = before.filter(|before| build.certificates.is_from(before.id, &pem)) {
        return Ok(before.clone());
    }
    let key = certified_key(&pem).map_err(|reason| format!("Secret {name}: {reason}"))?;
    let id = build.certificates.add(pem, key);
    Ok(ServerCertificate { secret: name.clone(), id })
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

fn certified_key([certificates, key]: &[Bytes; 2]) -> Result<CertifiedKey, String> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(certificates).collect();
    let chain = chain.map_err(|error| format!("tls.crt is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_owned());
    }
    // The error must not contain bytes of the key.
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "tls.key holds no private key in PEM")?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("tls.crt and tls.key cannot be used: {error}"))
}

fn references(spec: &GatewayListeners) -> &[GatewayListenersTlsCertificateRefs] {
    let tls = spec.tls.as_ref();
    tls.and_then(|tls| tls.certificate_refs.as_deref()).unwrap_or_default()
}

/// The Secrets to watch: those that listeners of a cluster name and may use.
pub(super) fn secrets(index: &Index) -> BTreeSet<ObjectName> {
    let not_owned = ownership::not_owned(index);
    let mut secrets = BTreeSet::new();
    for (source, object) in index.of_kind(Kind::Gateway) {
        let Object::Gateway(gateway) = object else { continue };
        if *source != Source::Cluster || not_owned.contains(&object.key()) {
            continue;
        }
        let name = object_name(&gateway.metadata);
        let listeners = gateway.spec.listeners.iter().filter(|one| one.protocol == "HTTPS");
        secrets
            .extend(listeners.flat_map(references).filter_map(|one| named(index, &name, one).ok()));
    }
    secrets.into_iter().take(MAX_SECRETS).collect()
}
