//! The fields by which a target learns who its client is: `X-Forwarded-*`, `Forwarded` and `Via`.

use http::header::{FORWARDED, HOST, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use router_core::sglang::headers;

use super::connection_info::ConnectionInfo;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Sets the fields in a client's request. Of a client that is no trusted proxy, the fields that it
/// sent itself are removed. `authority` is the host of the request line, if it has one.
pub(super) fn set(
    fields: &mut HeaderMap,
    connection: &ConnectionInfo,
    version: Version,
    authority: Option<&str>,
) {
    let trusted = connection.is_trusted_proxy();
    if !trusted {
        headers::remove_where(fields, is_forwarded);
    }
    let client = match chain(fields) {
        Some(before) => joined(&before, connection.client()),
        None => connection.client().clone(),
    };
    fields.insert(FORWARDED_FOR, client);
    let scheme = if connection.is_secure() { "https" } else { "http" };
    if !fields.contains_key(FORWARDED_PROTO) {
        fields.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if !fields.contains_key(FORWARDED_HOST) {
        let named = authority.and_then(|authority| HeaderValue::from_str(authority).ok());
        if let Some(host) = named.or_else(|| fields.get(HOST).cloned()) {
            fields.insert(FORWARDED_HOST, host);
        }
    }
    fields.append(VIA, HeaderValue::from_static(via(version)));
}

fn is_forwarded(name: &HeaderName) -> bool {
    name == FORWARDED || name == "x-real-ip" || name.as_str().starts_with("x-forwarded-")
}

/// The clients that the proxies before have named.
fn chain(fields: &HeaderMap) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> =
        fields.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    (!values.is_empty()).then(|| values.join(&b", "[..]))
}

fn joined(before: &[u8], client: &HeaderValue) -> HeaderValue {
    let all = [before, b", ", client.as_bytes()].concat();
    HeaderValue::from_bytes(&all).unwrap_or_else(|_| client.clone())
}

/// The received protocol and the name of this gateway (RFC 9110, section 7.6.3).
fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2 pd-router",
        Version::HTTP_10 => "1.0 pd-router",
        _ => "1.1 pd-router",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(trusted: bool) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("host", "shop.example"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-user", "root"),
            ("forwarded", "for=192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
            ("via", "1.1 edge"),
        ] {
            fields.append(name, value.parse().unwrap());
        }
        let connection = ConnectionInfo::plain(80, "10.0.0.9".parse().unwrap(), trusted);
        set(&mut fields, &connection, Version::HTTP_11, None);
        fields
    }

    #[test]
    fn the_fields_of_a_client_are_overwritten() {
        let sent = sent(false);
        assert!(sent.get_all("x-forwarded-for").iter().eq(["10.0.0.9"]));
        assert_eq!(sent["x-forwarded-proto"], "http");
        assert_eq!(sent["x-forwarded-host"], "shop.example");
        assert!(sent.get_all("via").iter().eq(["1.1 edge", "1.1 pd-router"]));
        for removed in ["x-forwarded-user", "forwarded", "x-real-ip"] {
            assert!(!sent.contains_key(removed), "{removed}");
        }
    }

    #[test]
    fn the_fields_of_a_trusted_proxy_are_kept() {
        let sent = sent(true);
        assert!(sent.get_all("x-forwarded-for").iter().eq(["192.0.2.1, 192.0.2.2, 10.0.0.9"]));
        assert_eq!(sent["x-forwarded-proto"], "https");
        assert_eq!(sent["x-forwarded-user"], "root");
        assert_eq!(sent["forwarded"], "for=192.0.2.1");
    }
}
