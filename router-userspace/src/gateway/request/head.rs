//! Checks the head of a request, and makes its path and fields those that routes match on.

use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderValue, Method, Version};
use router_core::route::{self, Head, PathRules};
use router_core::sglang::headers;

use super::connection_info::ConnectionInfo;
use super::forwarded;
use super::reject::Reject;
use super::upgrade::UpgradeRequest;

/// Checks the head of a request and normalizes it. An [`UpgradeRequest`] moves from the fields to the
/// extensions.
///
/// # Errors
/// The method or the transfer coding is not served, or the host or the path is invalid.
pub(super) fn normalize(
    parts: &mut Parts,
    connection: &ConnectionInfo,
    rules: PathRules,
) -> Result<(), Reject> {
    check_transfer_coding(parts)?;
    check_host(parts)?;
    name_host_of_line(parts)?;
    // A tunnel leads past every route, and an echo shows fields that proxies add (RFC 9110, section
    // 9.3.8).
    if [Method::CONNECT, Method::TRACE].contains(&parts.method) {
        return Err(Reject::Unsupported(format!("{} is not served here", parts.method)));
    }
    normalize_path(parts, rules)?;
    if let Some(upgrade) = UpgradeRequest::take(parts, connection.tunnel()) {
        parts.extensions.insert(upgrade);
    }
    headers::from_client(&mut parts.headers);
    let authority = parts.uri.authority().map(Authority::as_str);
    forwarded::set(&mut parts.headers, connection, parts.version, authority);
    Ok(())
}

/// No transfer coding but `chunked`, once (RFC 9112, section 6.1): its body would be passed on without
/// its coding, or its length would be read in another way by the next server.
fn check_transfer_coding(parts: &Parts) -> Result<(), Reject> {
    let mut fields = parts.headers.get_all(TRANSFER_ENCODING).iter();
    match (fields.next(), fields.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Reject::TransferCoding),
    }
}

/// Exactly one valid `Host` (RFC 9112, section 3.2): with two, a proxy before the gateway may route
/// by one and the gateway by the other.
fn check_host(parts: &Parts) -> Result<(), Reject> {
    let mut named = parts.headers.get_all(HOST).iter();
    let host = match (named.next(), named.next()) {
        (None, _) if parts.version == Version::HTTP_11 => return Err(Reject::BadHost(NOT_ONE)),
        (_, Some(_)) => return Err(Reject::BadHost(NOT_ONE)),
        (host, None) => host.map(|host| host.to_str().map_err(|_| Reject::BadHost(INVALID))),
    };
    let host = host.transpose()?;
    let authority = parts.uri.authority().map(Authority::as_str);
    // HTTP/1.0 has no host, and lets a client send one (RFC 9112, section 3.2).
    if authority.is_none() && host.map_or(parts.version != Version::HTTP_10, |host| host.is_empty())
    {
        return Err(Reject::BadHost(NO_HOST));
    }
    // Beside an authority in the line of HTTP/1.1, the field may be empty.
    let named = host.filter(|host| !host.is_empty());
    if ![named, authority].into_iter().flatten().all(route::is_authority) {
        return Err(Reject::BadHost(INVALID));
    }
    // HTTP/1.1 ignores the Host header of a request whose line has an authority; HTTP/2 does not
    // (RFC 9113, section 8.3.1).
    match (host, authority) {
        (Some(host), Some(authority))
            if parts.version == Version::HTTP_2 && !host.eq_ignore_ascii_case(authority) =>
        {
            Err(Reject::BadHost("the Host header differs from :authority"))
        }
        _ => Ok(()),
    }
}

/// A request line of HTTP/1 with an authority replaces the field (RFC 9112, section 3.2.2): a backend must not
/// see another host than the one that chose the route.
fn name_host_of_line(parts: &mut Parts) -> Result<(), Reject> {
    let authority = parts.uri.authority().filter(|_| parts.version < Version::HTTP_2);
    if let Some(authority) = authority {
        let host = HeaderValue::from_str(authority.as_str());
        parts.headers.insert(HOST, host.map_err(|_| Reject::BadHost(INVALID))?);
    }
    Ok(())
}

const NO_HOST: &str = "the request names no host, in neither :authority nor a Host header";
const NOT_ONE: &str = "a request needs exactly one Host header";
const INVALID: &str = "the host is not a name or an address with at most one port";

fn normalize_path(parts: &mut Parts, rules: PathRules) -> Result<(), Reject> {
    let given = parts.uri.path();
    let normal = route::normalize_path(given, rules).map_err(Reject::BadPath)?;
    if *normal == *given {
        return Ok(());
    }
    let path_and_query = match parts.uri.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    let mut uri = parts.uri.clone().into_parts();
    // Each character of a normal path was in the given path, is unreserved, or is part of `%25`.
    let invalid = |_| Reject::UnknownPath(parts.uri.path().to_owned());
    uri.path_and_query = Some(PathAndQuery::try_from(path_and_query).map_err(invalid)?);
    let invalid = |_| Reject::UnknownPath(parts.uri.path().to_owned());
    parts.uri = Uri::from_parts(uri).map_err(invalid)?;
    Ok(())
}

/// The parts of a head that routes match on.
pub(super) fn of(parts: &Parts) -> Head<'_> {
    let named = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    Head {
        method: &parts.method,
        // HTTP/2 has the host in the request line.
        host: parts.uri.authority().map(Authority::as_str).or(named),
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
    }
}
