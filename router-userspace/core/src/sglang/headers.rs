//! Header fields that go from one side to the other, and those that do not.

use http::header::{self, HeaderMap, HeaderName};

/// Whether a header steers the engine's rendezvous, naming or placement, which is the gateway's.
///
/// `x-override-*` replaces fields of the body (where the engine has it switched on) and
/// `x-data-parallel-rank` beats the body's rank.
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

/// The fields of a client's request that go to an engine.
///
/// Not: hop-by-hop fields, engine control, what the connection to the engine makes anew (`host`,
/// `content-length`), what the gateway answers itself (`expect`), digests of the client's body,
/// and `accept-encoding`, since the gateway reads the engine's answers.
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

/// The fields of a client's request that go to a backend that is no engine: all that is end to end,
/// its host and encodings included.
///
/// Not: what the connection to the backend makes anew, and what the gateway answers itself. A length
/// that the client sent beside a transfer coding must not frame what is passed on (RFC 9112 section
/// 6.3).
pub fn to_backend(client: &HeaderMap) -> HeaderMap {
    let mut out = end_to_end(client);
    out.remove(header::EXPECT);
    out.remove(header::CONTENT_LENGTH);
    out
}

/// The fields of a server's answer that go to the client.
///
/// `body_kept` says that the client gets the very bytes of the answer, so that their length and
/// digests still hold.
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

/// Fields that hold for the very bytes of a body.
const OF_THE_BYTES: [&str; 5] =
    ["content-length", "content-md5", "digest", "content-digest", "repr-digest"];

/// The fields that are for the far end: all but the hop-by-hop ones of RFC 9110 section 7.6.1,
/// which include every field that `Connection` names.
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

/// `trailer` is here because trailers are not passed on.
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
    fn an_engine_gets_what_is_end_to_end_and_no_control() {
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
    fn a_backend_gets_what_is_end_to_end() {
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
