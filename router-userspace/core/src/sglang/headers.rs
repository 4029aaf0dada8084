//! Which header fields are forwarded, in both directions.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

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

/// Removes what belongs to the client's connection from the fields of its request: the hop-by-hop
/// fields, and the fields that `Connection` names. Joins the `Cookie` fields, which HTTP/2 clients
/// split (RFC 9113, section 8.2.3). Call it before the filters of a route, so that a client cannot
/// name a field that a filter sets.
///
/// ```
/// use http::HeaderMap;
/// use router_core::sglang::headers::from_client;
///
/// let mut fields = HeaderMap::new();
/// fields.insert("connection", "close, X-Mine, Host".parse().unwrap());
/// fields.insert("x-mine", "1".parse().unwrap());
/// fields.insert("host", "shop.example".parse().unwrap());
/// from_client(&mut fields);
/// assert_eq!(fields.keys().collect::<Vec<_>>(), ["host"]);
/// ```
pub fn from_client(fields: &mut HeaderMap) {
    strip_hop_by_hop(fields);
    join_cookies(fields);
}

/// Removes the fields that are not forwarded to an engine. Call it after the filters of a route, so
/// that a route cannot send engine control either.
///
/// Removed are hop-by-hop fields, engine control, fields that the connection to the engine sets
/// again (`host`, `content-length`), fields that the gateway handles (`expect`), digests of the
/// client's body, and `accept-encoding`, since the gateway reads the engine's answers.
pub fn to_engine(fields: &mut HeaderMap) {
    remove_where(fields, |name| {
        is_hop_by_hop(name)
            || [header::HOST, header::EXPECT, header::ACCEPT_ENCODING].contains(name)
            || is_of_the_bytes(name)
            || is_engine_control(name)
    });
}

/// Removes the fields that are not forwarded to a backend that is not an engine. It gets all
/// end-to-end fields, including the host and the encodings.
///
/// Removed are fields that the connection to the backend sets again, and fields that the gateway
/// handles. A content length that came with a transfer coding must not frame the forwarded body
/// (RFC 9112, section 6.3).
pub fn to_backend(fields: &mut HeaderMap) {
    remove_where(fields, |name| {
        is_hop_by_hop(name) || [header::EXPECT, header::CONTENT_LENGTH].contains(name)
    });
}

/// The fields of a server's answer that are forwarded to the client. Fields that only the gateway
/// may send are removed.
///
/// `body_kept` is true if the body is forwarded unchanged, so that its length and digests still
/// hold. A length beside a transfer coding does not (RFC 9112, section 6.3).
pub fn to_client(answer: &HeaderMap, body_kept: bool) -> HeaderMap {
    let mut out = answer.clone();
    let coded = out.contains_key(header::TRANSFER_ENCODING);
    strip_hop_by_hop(&mut out);
    remove_where(&mut out, |name| name.as_str().starts_with("x-pd-router-"));
    if !body_kept {
        remove_where(&mut out, |name| is_of_the_bytes(name) || name == header::ETAG);
    } else if coded {
        out.remove(header::CONTENT_LENGTH);
    } else {
        unite_lengths(&mut out);
    }
    out
}

/// Whether a field depends on the exact bytes of the body.
fn is_of_the_bytes(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-length" | "content-md5" | "digest" | "content-digest" | "repr-digest"
    )
}

/// Whether a field is one of the hop-by-hop fields of RFC 9110, section 7.6.1, or `trailer`. HTTP/1.1 sends
/// no trailers that this field does not announce; HTTP/2 sends those of a body that is passed on without it.
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

/// Removes the hop-by-hop fields and the fields that `Connection` names.
fn strip_hop_by_hop(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive"))
        .filter(|name| !name.eq_ignore_ascii_case(b"close"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    for name in named {
        fields.remove(name);
    }
    remove_where(fields, is_hop_by_hop);
}

/// Whether a field is for all recipients, so that `Connection` cannot name it (RFC 9110, section
/// 7.6.1): the fields that select the target, describe the body, or name the clients before.
fn is_end_to_end(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("content-")
        || name.starts_with("x-forwarded-")
        || matches!(name, "host" | "date" | "cache-control" | "via" | "forwarded")
}

/// Removes the fields whose name fits.
pub fn remove_where(fields: &mut HeaderMap, fits: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| fits(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

fn join_cookies(fields: &mut HeaderMap) {
    let values: Vec<&[u8]> =
        fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if values.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&values.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, joined);
    }
}

/// Makes one length of a list of equal ones, which other recipients may refuse.
fn unite_lengths(fields: &mut HeaderMap) {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return };
    if lengths.next().is_none() && !first.as_bytes().contains(&b',') {
        return;
    }
    // The HTTP client has checked that all are equal.
    let one = first.as_bytes().split(|&byte| byte == b',').next().unwrap_or_default();
    if let Ok(one) = HeaderValue::from_bytes(one.trim_ascii()) {
        fields.insert(header::CONTENT_LENGTH, one);
    }
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
        let mut sent = client;
        from_client(&mut sent);
        to_engine(&mut sent);
        let mut sent = names(&sent);
        sent.sort_unstable();
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
        let mut sent = client;
        from_client(&mut sent);
        to_backend(&mut sent);
        let mut sent = names(&sent);
        sent.sort_unstable();
        assert_eq!(sent, ["accept-encoding", "content-encoding", "host"]);
    }

    #[test]
    fn repeated_fields_keep_all_their_values() {
        let mut answer = fields(&[("set-cookie", "a=1"), ("content-length", "9")]);
        answer.append("set-cookie", "b=2".parse().unwrap());
        assert_eq!(to_client(&answer, true).get_all("set-cookie").iter().count(), 2);
        assert!(to_client(&answer, true).contains_key("content-length"));
        assert!(!to_client(&answer, false).contains_key("content-length"));
    }

    #[test]
    fn a_connection_header_names_no_field_for_all_recipients() {
        let mut client = fields(&[
            ("connection", "host, content-type, X-Forwarded-For, x-mine, cache-control"),
            ("host", "shop.example"),
            ("content-type", "text/plain"),
            ("x-forwarded-for", "192.0.2.1"),
            ("cache-control", "no-store"),
            ("x-mine", "1"),
        ]);
        from_client(&mut client);
        let mut kept = names(&client);
        kept.sort_unstable();
        assert_eq!(kept, ["cache-control", "content-type", "host", "x-forwarded-for"]);
    }

    #[test]
    fn a_route_cannot_send_engine_control_or_hop_by_hop_fields() {
        let mut set_by_a_filter = fields(&[("x-override-rid", "1"), ("upgrade", "h2c")]);
        to_engine(&mut set_by_a_filter);
        assert!(set_by_a_filter.is_empty());
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut client = fields(&[("cookie", "a=1"), ("cookie", "b=2")]);
        from_client(&mut client);
        assert!(client.get_all("cookie").iter().eq(["a=1; b=2"]));
    }

    #[test]
    fn a_length_is_one_number_and_never_beside_a_transfer_coding() {
        let lengths = |answer: &[(&'static str, &'static str)]| {
            let sent = to_client(&fields(answer), true);
            let all = sent.get_all("content-length").iter();
            all.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let coded = [("content-length", "7"), ("transfer-encoding", "chunked")];
        assert!(lengths(&coded).is_empty());
        assert_eq!(lengths(&[("content-length", "7, 7")]), ["7"]);
        assert_eq!(lengths(&[("content-length", "7"), ("content-length", "7")]), ["7"]);
    }

    #[test]
    fn the_gateways_own_fields_of_an_answer_are_removed() {
        let answer = fields(&[("x-pd-router-reason", "no_route"), ("server", "uvicorn")]);
        assert_eq!(names(&to_client(&answer, true)), ["server"]);
    }
}
