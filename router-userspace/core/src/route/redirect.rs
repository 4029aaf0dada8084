//! [`Redirect`]: the Location of a redirected client.

use std::fmt::Write;
use std::sync::Arc;

use http::StatusCode;
use http::uri::Scheme;
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::filter::PathEdit;
use super::{Head, Listener, host_name};

/// The RequestRedirect filter of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: Option<PathEdit>,
    pub status: StatusCode,
}

impl Redirect {
    /// The Location for a request to `listener`. `matched` is [`super::Found::prefix`].
    ///
    /// The port follows the Gateway API: the filter's port; else the default port of the filter's
    /// scheme, if it names one; else the listener's port. A scheme's default port is not written.
    pub fn location(&self, head: &Head<'_>, listener: &Listener, matched: Option<&str>) -> String {
        let listener_scheme = if listener.secure() { &Scheme::HTTPS } else { &Scheme::HTTP };
        let scheme = self.scheme.as_ref().unwrap_or(listener_scheme);
        let default_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => port,
            (None, Some(_)) => default_port,
            (None, None) => listener.port,
        };
        let host = self.hostname.as_deref().or(head.host.map(host_name));
        let mut location = String::new();
        // Without a host only a relative reference is possible (RFC 3986, section 4.2).
        if let Some(host) = host.filter(|host| !host.is_empty()) {
            // Writing into a String cannot fail.
            let _ = write!(location, "{scheme}://{host}");
            if port != default_port {
                let _ = write!(location, ":{port}");
            }
        }
        match &self.path {
            Some(edit) => location.push_str(&edit.apply(head.path, matched)),
            None => location.push_str(head.path),
        }
        if let Some(query) = head.query {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

impl Serialize for Redirect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Redirect", 5)?;
        fields.serialize_field("status", &self.status.as_u16())?;
        fields.serialize_field("scheme", &self.scheme.as_ref().map(Scheme::as_str))?;
        fields.serialize_field("hostname", &self.hostname)?;
        fields.serialize_field("port", &self.port)?;
        fields.serialize_field("path", &self.path)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CertificateId, ServerCertificate};
    use super::*;
    use crate::fleet::ObjectName;

    #[test]
    fn the_port_of_a_location_follows_the_gateway_api() {
        let headers = http::HeaderMap::new();
        let head = Head {
            method: &http::Method::GET,
            host: Some("example.org:8080"),
            path: "/v1/models",
            query: Some("a=b"),
            headers: &headers,
        };
        let bare = Redirect {
            scheme: None,
            hostname: None,
            port: None,
            path: None,
            status: StatusCode::FOUND,
        };
        let https = Redirect { scheme: Some(Scheme::HTTPS), ..bare.clone() };
        let ported = Redirect { port: Some(8443), hostname: Some("a.b".into()), ..https.clone() };
        let full = PathEdit::ReplaceFullPath("/x".into());
        let moved = Redirect { path: Some(full), port: Some(80), ..bare.clone() };
        let hostless = Head { host: None, ..head };
        let listener = |port: u16, secret: Option<&str>| {
            let name = |name: &str| ObjectName { namespace: "n".into(), name: name.into() };
            let mut listener = Listener::new(name("g"), "l".into(), port, None, Vec::new());
            let certificate =
                |secret| ServerCertificate { secret: name(secret), id: CertificateId::default() };
            listener.certificates.extend(secret.map(certificate));
            listener
        };
        assert_eq!(bare.location(&hostless, &listener(80, None), None), "/v1/models?a=b");
        let secure = bare.location(&head, &listener(8443, Some("s")), None);
        assert_eq!(secure, "https://example.org:8443/v1/models?a=b", "as the client came");
        for (redirect, expected) in [
            (bare, "http://example.org:8080/v1/models?a=b"),
            (https, "https://example.org/v1/models?a=b"),
            (ported, "https://a.b:8443/v1/models?a=b"),
            (moved, "http://example.org/x?a=b"),
        ] {
            assert_eq!(redirect.location(&head, &listener(8080, None), None), expected);
        }
    }
}
