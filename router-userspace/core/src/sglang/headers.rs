//! Which header fields are forwarded, in both directions.

use http::header::{self, HeaderMap, HeaderName};

/// Whether a header controls the rendezvous, the name or the placement of a request. Only the
/// gateway may send these.
///
/// `x-override-*` replaces body fields on engines that enable it. `x-data-parallel-rank` overrides
/// the rank in the body.
///
/// ```
/// use http::HeaderName;
/// use router_core::sglang::headers::is_engine_control;
///
/// assert!(is_engine_control(&HeaderName::from_static("x-override-bootstrap-room")));
/// assert!(!is_engine_control(&HeaderName::from_static("x-request-id")));
/// ```
pub fn is_engine_control(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-override-") || name == "x-data-parallel-rank"
}

/// The fields of a client's request that are forwarded to an engine.
///
/// Removed are hop-by-hop fields, engine control, fields that the connection to the engine sets
/// again (`host`, `content-length`), fields that the gateway handles (`expect`), digests of the
/// client's body, and `accept-encoding`, since the gateway reads the engine's answers.
pub fn to_engine(client: &HeaderMap) -> HeaderMap {
    let mut out = end_to_end(client);
    for name in [header::HOST, header::EXPECT, header::ACCEPT_ENCODING] {
        out.remove(name);
    }
    for name in OF_THE_BYTES {
        out.remove(name);
    }
    let control: Vec<HeaderName> =
        out.keys().filter(|name| is_engine_control(name)).cloned().collect();
    for name in control {
        out.remove(name);
    }
    out
}

/// The fields of a client's request that are forwarded to a backend that is not an engine: all
/// end-to-end fields, including the host and the encodings.
///
/// Removed are fields that the connection to the backend sets again, and fields that the gateway
/// handles. A content length that came with a transfer coding must not frame the forwarded body
/// (RFC 9112, section 6.3).
pub fn to_backend(client: &HeaderMap) -> HeaderMap {
    let mut out = end_to_end(client);
    out.remove(header::EXPECT);
    out.remove(header::CONTENT_LENGTH);
    out
}

/// The fields of a server's answer that are forwarded to the client.
///
/// `body_kept` is true if the body is forwarded unchanged, so that its length and digests still
/// hold.
pub fn to_client(answer: &HeaderMap, body_kept: bool) -> HeaderMap {
    let mut out = end_to_end(answer);
    if !body_kept {
        for name in OF_THE_BYTES {
            out.remove(name);
        }
        out.remove(header::ETAG);
    }
    out
}

/// Fields that depend on the exact bytes of the body.
const OF_THE_BYTES: [&str; 5] =
    ["content-length", "content-md5", "digest", "content-digest", "repr-digest"];

/// The end-to-end fields: all except the hop-by-hop fields of RFC 9110 section 7.6.1 and the fields
/// that `Connection` names.
///
/// ```
/// use http::HeaderMap;
/// use router_core::sglang::headers::end_to_end;
///
/// let mut fields = HeaderMap::new();
/// fields.insert("connection", "close, X-Mine".parse().unwrap());
/// fields.insert("x-mine", "1".parse().unwrap());
/// fields.insert("x-request-id", "7".parse().unwrap());
/// assert_eq!(end_to_end(&fields).keys().collect::<Vec<_>>(), ["x-request-id"]);
/// ```
pub fn end_to_end(fields: &HeaderMap) -> HeaderMap {
    let named: Vec<&str> = fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let mut out = HeaderMap::with_capacity(fields.keys_len());
    for (name, value) in fields {
        let hop = is_hop_by_hop(name)
            || named.iter().any(|field| field.eq_ignore_ascii_case(name.as_str()));
        if !hop {
            out.append(name, value.clone());
        }
    }
    out
}

/// `trailer` is included because trailers are not forwarded.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|&(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        map.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn an_engine_gets_end_to_end_fields_without_engine_control() {
        let client = fields(&[
            ("host", "gateway"),
            ("authorization", "Bearer x"),
            ("content-type", "application/json"),
            ("content-length", "5"),
            ("content-digest", "sha-256=:x:"),
            ("accept-encoding", "gzip"),
            ("expect", "100-continue"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("x-override-rid", "mine"),
            ("x-override-of-tomorrow", "1"),
            ("x-data-parallel-rank", "3"),
            ("x-smg-routing-key", "k"),
        ]);
        let mut sent =
            names(&to_engine(&client)).into_iter().map(str::to_owned).collect::<Vec<_>>();
        sent.sort();
        assert_eq!(sent, ["authorization", "content-type", "x-smg-routing-key"]);
    }

    #[test]
    fn a_backend_gets_end_to_end_fields() {
        let client = fields(&[
            ("host", "shop.example"),
            ("accept-encoding", "gzip"),
            ("content-encoding", "gzip"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("te", "trailers"),
        ]);
        let sent = to_backend(&client);
        assert_eq!(names(&sent), ["host", "accept-encoding", "content-encoding"]);
    }

    #[test]
    fn repeated_fields_keep_all_their_values() {
        let mut answer = fields(&[("set-cookie", "a=1"), ("content-length", "9")]);
        answer.append("set-cookie", "b=2".parse().unwrap());
        assert_eq!(to_client(&answer, true).get_all("set-cookie").iter().count(), 2);
        assert!(to_client(&answer, true).contains_key("content-length"));
        assert!(!to_client(&answer, false).contains_key("content-length"));
    }
}
