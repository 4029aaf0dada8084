//! The law of the heads of requests.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use http::header::{CONNECTION, COOKIE, HOST, ORIGIN, VIA};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use percent_encoding::percent_decode_str;
use router_core::fleet::{Fleet, Profile};
use router_core::route::{
    self, Cors, CorsRequest, EscapedSlashes, Head, OriginPattern, PathRules, Target,
};
use router_core::sglang::headers;

use super::super::connection_info::ConnectionInfo;
use super::super::content_coding::ContentCoding;
use super::super::endpoint::{Served, error_format, serve};
use super::super::handle::request_id;
use super::super::head::{self as request_head, normalize};
use crate::control::laws::fleet;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
/// Port of the listeners in the fleet.
const PORT: u16 = 80;
/// Fields between two neighbours on the way (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Routes with every kind of match and filter.
static FLEET: LazyLock<Fleet> =
    LazyLock::new(|| fleet(include_str!("../../../control/golden/routes.yaml")));

/// A request line and fields, as HTTP/1 has them. The first byte chooses how paths are normalized, and
/// whether the client is trusted.
///
/// What is accepted names one host, has a path that no decoding leads out of, and gets to its target with
/// the client's end-to-end fields, without those between neighbours, and with the client's address.
pub fn head(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else { return };
    let Some(sent) = parse(text) else { return };
    let trusted = first & 1 != 0;
    let escaped_slashes = match first >> 1 & 3 {
        0 | 3 => EscapedSlashes::Reject,
        1 => EscapedSlashes::Unescape,
        _ => EscapedSlashes::Keep,
    };
    let rules = PathRules { escaped_slashes, merge_slashes: first & 8 != 0 };
    let connection = ConnectionInfo::plain(PORT, CLIENT, trusted);
    let mut parts = sent.clone();
    let _ = ContentCoding::of(&sent.headers);
    assert!(request_id(&sent.headers).len() <= 256);
    if let Err(reject) = normalize(&mut parts, &connection, rules) {
        let status = reject.status().as_u16();
        assert!((400..500).contains(&status) || status == 501, "{status}");
        let _ = reject.into_response(error_format(sent.uri.path()));
        return;
    }
    path_is_normal(&sent, &parts, rules);
    host_is_one(&sent, &parts);
    fields_are_end_to_end(&sent, &parts, trusted);
    client_is_named(&parts.headers, trusted);
    targets_get_no_control(&parts.headers);
    routes_alike_in_either_case(&parts);
    a_policy_allows_its_origins_only(&sent);
}

/// Reads a head with the types of `http`, as hyper does.
fn parse(text: &[u8]) -> Option<Parts> {
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(words.next()?).ok()?;
    *request.uri_mut() = Uri::try_from(words.next()?).ok()?;
    *request.version_mut() = match words.next()? {
        b"HTTP/1.0" => Version::HTTP_10,
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/2" => Version::HTTP_2,
        _ => return None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request.into_parts().0)
}

fn path_is_normal(sent: &Parts, parts: &Parts, rules: PathRules) {
    let path = parts.uri.path();
    assert_eq!(parts.uri.query(), sent.uri.query());
    assert_eq!(route::normalize_path(path, rules), Ok(Cow::Borrowed(path)), "it is normal already");
    let decoded = percent_decode_str(path).collect::<Vec<u8>>();
    let is_slash = |byte: &u8| match rules.escaped_slashes {
        EscapedSlashes::Keep => false,
        _ => matches!(byte, b'/' | b'\\'),
    };
    // A backend that decodes the whole path, and one that decodes each segment.
    let whole = decoded.split(is_slash).map(<[u8]>::to_vec);
    let each = path.split('/').map(|segment| percent_decode_str(segment).collect::<Vec<u8>>());
    for segment in whole.chain(each) {
        assert!(!matches!(&segment[..], b"." | b".."), "{path}");
    }
    for profile in [Profile::Pd, Profile::Single] {
        for method in [&Method::GET, &Method::POST] {
            if let Ok(served) = serve(profile, method, path) {
                assert!(served != Served::Model || path.starts_with("/v1/models/"));
                assert!(!path.contains(['\\', '?', '#']), "{path}");
            }
        }
    }
}

fn host_is_one(sent: &Parts, parts: &Parts) {
    let hosts: Vec<&HeaderValue> = parts.headers.get_all(HOST).iter().collect();
    assert!(hosts.len() == 1 || hosts.is_empty() && parts.version != Version::HTTP_11);
    let authority = parts.uri.authority().map(Authority::as_str);
    match authority.filter(|_| parts.version != Version::HTTP_2) {
        Some(authority) => assert_eq!(hosts, [authority]),
        None => assert!(sent.headers.get_all(HOST).iter().eq(hosts.iter().copied()), "{hosts:?}"),
    }
    let named = hosts.first().map(|host| host.to_str().expect("a host has been checked"));
    for text in [named, authority].into_iter().flatten().filter(|text| !text.is_empty()) {
        let other = Authority::try_from(text).expect("another parser takes it");
        assert!(!text.contains('@'), "{text}");
        let host = other.host();
        assert_eq!(route::host_name(text), host.strip_suffix('.').unwrap_or(host));
    }
    if parts.version == Version::HTTP_2
        && let (Some(named), Some(authority)) = (named, authority)
    {
        assert!(named.eq_ignore_ascii_case(authority), "{named} {authority}");
    }
    assert_eq!(request_head::of(parts).host, authority.or(named));
}

/// The client's fields arrive, but those between neighbours and those that `Connection` names.
fn fields_are_end_to_end(sent: &Parts, parts: &Parts, trusted: bool) {
    let named: Vec<String> = sent
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    // `host_is_one` has the host.
    for name in sent.headers.keys().filter(|name| **name != HOST) {
        let text = name.as_str();
        let is_for_all = text.starts_with("content-")
            || text.starts_with("x-forwarded-")
            || matches!(text, "host" | "date" | "cache-control" | "via" | "forwarded");
        let is_named = named.iter().any(|named| named == text);
        let about_clients =
            text.starts_with("x-forwarded-") || matches!(text, "forwarded" | "x-real-ip");
        let arrived: Vec<_> = parts.headers.get_all(name).iter().collect();
        if HOP_BY_HOP.contains(&text) || is_named && !is_for_all {
            assert!(arrived.is_empty(), "{text}");
        } else if name == VIA {
            assert_eq!(arrived.len(), sent.headers.get_all(name).iter().count() + 1);
        } else if name == COOKIE {
            let all: Vec<_> = sent.headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
            assert!(arrived.len() == 1 && arrived[0].as_bytes() == all.join(&b"; "[..]));
        } else if !about_clients {
            assert!(sent.headers.get_all(name).iter().eq(arrived), "{text}");
        } else if !trusted
            && !matches!(text, "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host")
        {
            assert!(arrived.is_empty(), "{text}");
        }
    }
    for name in parts.headers.keys().filter(|name| !sent.headers.contains_key(*name)) {
        let text = name.as_str();
        assert!(text.starts_with("x-forwarded-") || [VIA, HOST].contains(name), "{text}");
    }
}

fn client_is_named(fields: &HeaderMap, trusted: bool) {
    let clients: Vec<_> = fields.get_all("x-forwarded-for").iter().collect();
    let [clients] = clients[..] else { panic!("{clients:?}") };
    assert!(clients.as_bytes().ends_with(b"10.0.0.9"), "{clients:?}");
    let via = fields.get_all(VIA).iter().next_back().expect("it is set");
    assert!(via.as_bytes().ends_with(b" pd-router"), "{via:?}");
    if !trusted {
        assert_eq!(clients, "10.0.0.9");
        assert!(fields.get_all("x-forwarded-proto").iter().eq(["http"]));
        assert!(fields.get_all("x-forwarded-host").iter().count() <= 1);
    }
}

fn targets_get_no_control(fields: &HeaderMap) {
    let mut engine = fields.clone();
    headers::to_engine(&mut engine);
    for name in engine.keys() {
        assert!(!headers::is_engine_control(name), "{name}");
        assert!(!matches!(name.as_str(), "host" | "content-length" | "expect"), "{name}");
        assert!(fields.get_all(name).iter().eq(engine.get_all(name).iter()), "{name}");
    }
    let mut backend = fields.clone();
    headers::to_backend(&mut backend);
    assert!(!backend.contains_key("content-length") && !backend.contains_key("expect"));
    assert_eq!(backend.get(HOST), fields.get(HOST));
}

/// Hosts have no case, and what a route makes of a request can be sent.
fn routes_alike_in_either_case(parts: &Parts) {
    let head = request_head::of(parts);
    let host = head.host.map(str::to_ascii_uppercase);
    let loud = Head { host: host.as_deref(), ..head };
    let found = route::find(&FLEET, PORT, &head, 7);
    let again = route::find(&FLEET, PORT, &loud, 7);
    assert_eq!(
        found.as_ref().map(|found| found.route()),
        again.as_ref().map(|found| found.route())
    );
    let Some(found) = found else { return };
    let given = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = found.filters.rewrite(given, found.prefix);
    assert!(PathAndQuery::try_from(path.as_ref()).is_ok(), "{path}");
    let mut fields = parts.headers.clone();
    found.filters.apply_request(&mut fields);
    found.filters.apply_response(&mut fields);
    if let Target::Redirect(redirect) = found.target {
        let location = redirect.location(&head, found.listener, found.prefix);
        assert!(HeaderValue::from_str(&location).is_ok(), "{location}");
    }
}

fn a_policy_allows_its_origins_only(sent: &Parts) {
    let pattern = OriginPattern::parse("https://*.shop.example").expect("it is one");
    let cors = Cors { allow_origins: vec![pattern], allow_credentials: true, ..Cors::default() };
    let mut response = HeaderMap::new();
    cors.apply(&CorsRequest::of(&sent.method, &sent.headers), &mut response);
    let Some(allowed) = response.get("access-control-allow-origin") else { return };
    assert_eq!(Some(allowed), sent.headers.get(ORIGIN));
    let origin: Uri = allowed.to_str().expect("text").parse().expect("an origin is a URI");
    assert_eq!(origin.scheme_str(), Some("https"));
    let host = origin.host().expect("it has a host").to_ascii_lowercase();
    assert!(host.ends_with(".shop.example"), "{host}");
    assert_eq!(origin.port_u16().unwrap_or(443), 443);
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_near_heads_keep_the_law() {
        crate::laws::inputs::try_law("head", super::head, 20_000);
    }
}
