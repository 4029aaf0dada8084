//! [`Cors`]: which web pages of other origins may call a route, and read its responses.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Serialize, Serializer};

/// The response fields of the CORS protocol (Fetch, section 3.3.3).
const RESPONSE_FIELDS: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// A CORS policy: HTTPRoute's CORS filter, or that of a flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    pub allow_origins: Vec<OriginPattern>,
    pub allow_credentials: bool,
    pub allow_methods: CorsList,
    pub allow_headers: CorsList,
    pub expose_headers: CorsList,
    /// Seconds for which a browser may keep the answer to a preflight request.
    pub max_age: u32,
}

/// A list of methods or field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CorsList {
    #[default]
    None,
    /// `*`
    All,
    /// Names with `, ` between them.
    Names(HeaderValue),
}

/// The parts of a request that the CORS protocol uses.
#[derive(Clone, Debug, Default)]
pub struct CorsRequest {
    origin: Option<HeaderValue>,
    preflight: Option<Preflight>,
}

/// What a preflight request announces.
#[derive(Clone, Debug)]
struct Preflight {
    method: Method,
    headers: Option<HeaderValue>,
}

impl CorsRequest {
    pub fn of(method: &Method, headers: &HeaderMap) -> CorsRequest {
        let origin = headers.get(ORIGIN).cloned();
        let announced = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let announced = announced.filter(|_| *method == Method::OPTIONS && origin.is_some());
        let announced = announced.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
        let preflight = announced.map(|method| Preflight {
            method,
            headers: headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
        });
        CorsRequest { origin, preflight }
    }

    /// The method that a preflight request announces; `None` for any other request.
    pub fn announced_method(&self) -> Option<&Method> {
        self.preflight.as_ref().map(|preflight| &preflight.method)
    }
}

impl Cors {
    /// Sets the CORS fields of the response to `request`, and removes those of the backend: one that
    /// allows every origin would lift the policy.
    pub fn apply(&self, request: &CorsRequest, response: &mut HeaderMap) {
        for name in &RESPONSE_FIELDS {
            response.remove(name);
        }
        let allowed = self.allowed_origin(request);
        if self.depends_on_origin() {
            response.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = allowed else { return };
        let exposed = self.exposed(response);
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.allow_credentials {
            let allowed = HeaderValue::from_static("true");
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, allowed);
        }
        if let Some(exposed) = exposed {
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        let Some(preflight) = &request.preflight else { return };
        let method = HeaderValue::from_str(preflight.method.as_str()).ok();
        if let Some(methods) = self.announced(&self.allow_methods, method) {
            response.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(headers) = self.announced(&self.allow_headers, preflight.headers.clone()) {
            response.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers);
        }
        response.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
    }

    /// Whether the responses to two origins differ, so that no cache may mix them up.
    fn depends_on_origin(&self) -> bool {
        self.allow_credentials || self.allow_origins != [OriginPattern::Any]
    }

    /// The value of `Access-Control-Allow-Origin`.
    fn allowed_origin(&self, request: &CorsRequest) -> Option<HeaderValue> {
        let given = request.origin.as_ref()?;
        let origin = given.to_str().ok().map(Origin::parse)?;
        let allows = |pattern: &OriginPattern| pattern.allows(origin.as_ref());
        self.allow_origins.iter().any(allows).then(|| match self.depends_on_origin() {
            true => given.clone(),
            false => HeaderValue::from_static("*"),
        })
    }

    /// The value of a list. `*` becomes what the browser announces: it has no meaning in a request with
    /// credentials, and in others it does not cover `Authorization` (Fetch, section 3.3.4).
    fn announced(&self, list: &CorsList, announced: Option<HeaderValue>) -> Option<HeaderValue> {
        match list {
            CorsList::None => None,
            CorsList::Names(names) => Some(names.clone()),
            CorsList::All => announced
                .or_else(|| (!self.allow_credentials).then(|| HeaderValue::from_static("*"))),
        }
    }

    /// The value of `Access-Control-Expose-Headers`. In a response with credentials `*` has no meaning:
    /// the fields of the response are named.
    fn exposed(&self, response: &HeaderMap) -> Option<HeaderValue> {
        match &self.expose_headers {
            CorsList::None => None,
            CorsList::Names(names) => Some(names.clone()),
            CorsList::All if self.allow_credentials => {
                let names: Vec<&str> = response.keys().map(HeaderName::as_str).collect();
                HeaderValue::from_str(&names.join(", ")).ok().filter(|names| !names.is_empty())
            }
            CorsList::All => Some(HeaderValue::from_static("*")),
        }
    }
}

impl Serialize for CorsList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            CorsList::None => "",
            CorsList::All => "*",
            CorsList::Names(names) => names.to_str().unwrap_or_default(),
        })
    }
}

/// An origin, or a pattern of origins such as `https://*.shop.example:8443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: every origin, `null` included.
    Any,
    /// Origins with this scheme, this port, and a host that matches.
    Host(Arc<HostPattern>),
}

/// A pattern of hosts. Everything is in lower case.
#[derive(Debug, PartialEq, Eq)]
pub struct HostPattern {
    text: Box<str>,
    scheme: Box<str>,
    /// The whole host, or what is before `*`.
    start: Box<str>,
    /// What is after `*`, if the host has one.
    end: Option<Box<str>>,
    port: Option<u16>,
}

/// The text is no origin.
#[derive(Debug, thiserror::Error)]
#[error(
    "must be `*` or an origin such as https://shop.example:8443, whose host may contain one `*`"
)]
pub struct BadOrigin;

impl OriginPattern {
    /// Parses `*`, `scheme://host` or `scheme://host:port`. A `*` in the host stands for one or more
    /// characters of a host name, dots included.
    ///
    /// # Errors
    /// The text has another form.
    pub fn parse(text: &str) -> Result<OriginPattern, BadOrigin> {
        if text == "*" {
            return Ok(OriginPattern::Any);
        }
        let lower = text.to_ascii_lowercase();
        let origin = Origin::parse(&lower).ok_or(BadOrigin)?;
        let (start, end) = match origin.host.split_once('*') {
            Some((start, end)) => (start, Some(end)),
            None => (origin.host, None),
        };
        if ![Some(start), end].into_iter().flatten().all(|part| part.bytes().all(is_host_byte)) {
            return Err(BadOrigin);
        }
        Ok(OriginPattern::Host(Arc::new(HostPattern {
            scheme: origin.scheme.into(),
            start: start.into(),
            end: end.map(Into::into),
            port: origin.port,
            text: lower.as_str().into(),
        })))
    }

    fn allows(&self, origin: Option<&Origin<'_>>) -> bool {
        match (self, origin) {
            (OriginPattern::Any, _) => true,
            (OriginPattern::Host(pattern), Some(origin)) => pattern.allows(origin),
            (OriginPattern::Host(_), None) => false,
        }
    }
}

impl HostPattern {
    fn allows(&self, origin: &Origin<'_>) -> bool {
        let host = origin.host.to_ascii_lowercase();
        origin.scheme.eq_ignore_ascii_case(&self.scheme)
            && origin.port == self.port
            && match &self.end {
                None => host == *self.start,
                Some(end) => {
                    let rest = host.strip_prefix(&*self.start);
                    let inner = rest.and_then(|rest| rest.strip_suffix(&**end));
                    inner.is_some_and(|inner| !inner.is_empty() && inner.bytes().all(is_name_byte))
                }
            }
    }
}

impl Serialize for OriginPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            OriginPattern::Any => "*",
            OriginPattern::Host(pattern) => &pattern.text,
        })
    }
}

/// Bytes of a host: a name, an IPv4 address, or an IPv6 address in brackets.
fn is_host_byte(byte: u8) -> bool {
    is_name_byte(byte) || matches!(byte, b'[' | b']' | b':')
}

/// Bytes of a name, which are all that a wildcard stands for.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

/// The parts of an `Origin` field that is not `null`.
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    /// The port, or that of the scheme.
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Origin<'a>> {
        let (scheme, authority) = text.split_once("://")?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon is inside an IPv6 address.
            Some((_, end)) if end.ends_with(']') => (authority, None),
            Some((host, port)) => (host, Some(port.parse::<u16>().ok().filter(|port| *port > 0)?)),
            None => (authority, None),
        };
        let valid = !host.is_empty() && !scheme.is_empty() && scheme.bytes().all(is_scheme);
        let default = || match scheme {
            _ if scheme.eq_ignore_ascii_case("https") => Some(443),
            _ if scheme.eq_ignore_ascii_case("http") => Some(80),
            _ => None,
        };
        valid.then(|| Origin { scheme, host, port: port.or_else(default) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], allow_credentials: bool) -> Cors {
        Cors {
            allow_origins: origins.iter().map(|o| OriginPattern::parse(o).unwrap()).collect(),
            allow_credentials,
            allow_methods: CorsList::All,
            allow_headers: CorsList::All,
            expose_headers: CorsList::All,
            max_age: 5,
        }
    }

    fn applied(cors: &Cors, method: Method, fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        let fields = fields.iter().cloned();
        let request = fields.map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        let mut response = HeaderMap::new();
        response.insert("x-own", HeaderValue::from_static("1"));
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("the backend's"));
        cors.apply(&CorsRequest::of(&method, &request), &mut response);
        response
    }

    fn allows(cors: &Cors, origin: &'static str) -> bool {
        let response = applied(cors, Method::GET, &[(ORIGIN, origin)]);
        response.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
    }

    #[test]
    fn an_origin_matches_exactly_or_by_a_wildcard_of_its_host() {
        let patterns = ["https://shop.example", "https://*.shop.example:8443", "http://[::1]:3000"];
        let some = cors(&patterns, false);
        for (origin, expected) in [
            ("https://shop.example", true),
            ("HTTPS://SHOP.example:443", true),
            ("http://shop.example", false),
            ("https://shop.example:8443", false),
            ("https://a.shop.example", false),
            ("https://a.b.shop.example:8443", true),
            ("https://.shop.example:8443", false),
            ("https://evil.example/.shop.example:8443", false),
            ("https://a].shop.example:8443", false),
            ("https://a:1.shop.example:8443", false),
            ("https://shop.example.evil", false),
            ("http://[::1]:3000", true),
            ("http://[::1]", false),
            ("null", false),
        ] {
            assert_eq!(allows(&some, origin), expected, "{origin}");
        }
        assert!(allows(&cors(&["https://*"], false), "https://a.b"));
        assert!(allows(&cors(&["*"], false), "null"));
        assert!(!allows(&cors(&[], false), "https://a.b"));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in ["", "shop.example", "https://", "://a", "https://a/b", "https://a:0", "**"] {
            assert!(OriginPattern::parse(text).is_err(), "{text}");
        }
        for text in ["https://*.*", "https://a:99999", "https://u@a", "null", "https://a?b"] {
            assert!(OriginPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wildcard_becomes_what_is_announced_and_credentials_name_the_origin() {
        let announced = [
            (ORIGIN, "https://a.b"),
            (ACCESS_CONTROL_REQUEST_METHOD, "PUT"),
            (ACCESS_CONTROL_REQUEST_HEADERS, "authorization, x-a"),
        ];
        let without = applied(&cors(&["*"], false), Method::OPTIONS, &announced);
        assert_eq!(without[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(without[ACCESS_CONTROL_ALLOW_METHODS], "PUT");
        assert_eq!(without[ACCESS_CONTROL_ALLOW_HEADERS], "authorization, x-a");
        assert_eq!(without[ACCESS_CONTROL_EXPOSE_HEADERS], "*");
        assert_eq!(without[ACCESS_CONTROL_MAX_AGE], "5");
        assert!(!without.contains_key(VARY));
        let with = applied(&cors(&["*"], true), Method::OPTIONS, &announced[..2]);
        assert_eq!(with[ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.b");
        assert_eq!(with[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert!(!with.contains_key(ACCESS_CONTROL_ALLOW_HEADERS), "none is announced");
        assert_eq!(with[ACCESS_CONTROL_EXPOSE_HEADERS], "x-own, vary");
        assert_eq!(with[VARY], "Origin");
    }

    #[test]
    fn an_origin_that_is_not_allowed_gets_no_field_of_the_backend_either() {
        let some = cors(&["https://a.b"], false);
        for fields in [&[(ORIGIN, "https://c.d")][..], &[]] {
            let response = applied(&some, Method::GET, fields);
            assert_eq!(response.len(), 2, "{response:?}");
            assert_eq!(response[VARY], "Origin");
        }
    }
}
