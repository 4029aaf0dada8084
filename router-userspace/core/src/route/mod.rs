//! Matches requests to backends, with the Gateway API's precedence, compiled for lookup.
//!
//! A lookup takes one binary search per host label and path element and does not allocate. Regular
//! expressions are the exception: they are tried one by one, each in time linear in its input.

mod certificate;
mod cors;
mod filter;
mod hostname;
mod listener;
mod matches;
mod mirror;
mod normalize;
mod pattern;
mod redirect;
mod rule;
mod table;

pub use certificate::{CertificateId, ServerCertificate};
pub use cors::{BadOrigin, Cors, CorsList, CorsRequest, OriginPattern};
pub use filter::{Filters, HeaderEdit, PathEdit};
pub use hostname::{BadHostname, Hostname, host_name, is_authority};
pub use listener::{AttachedRule, Listener};
pub use matches::{Match, PathMatch, ValueMatch};
pub use mirror::{Mirror, MirrorShare};
pub use normalize::{BadPath, EscapedSlashes, PathRules, normalize_path};
pub use pattern::{BadPattern, Pattern};
pub use redirect::Redirect;
pub use rule::{Backend, Rule, Target, Timeouts};

use crate::fleet::{Fleet, ObjectName};

/// The parts of a request head that routes match on.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: &'a http::Method,
    /// The `:authority` or the Host header, with or without a port.
    pub host: Option<&'a str>,
    /// Without the query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a http::HeaderMap,
}

/// The result of a lookup.
#[derive(Clone, Copy, Debug)]
pub struct Found<'f> {
    pub listener: &'f Listener,
    pub rule: &'f Rule,
    pub target: &'f Target,
    /// The rule's filters, followed by those of the selected backend.
    pub filters: &'f Filters,
    /// Where copies of the request go.
    pub mirrors: &'f [Mirror],
    /// The path prefix that matched, without a trailing slash; `None` after an exact match.
    pub prefix: Option<&'f str>,
}

impl<'f> Found<'f> {
    pub fn route(&self) -> &'f ObjectName {
        &self.rule.route
    }

    /// The timeouts of the HTTPRoute, else of its BackendTrafficPolicy, else of the Gateway's.
    pub fn timeouts(&self) -> Timeouts {
        self.rule.timeouts
    }
}

/// Finds the backend of a request on `port`, a port of this process. `draw` is a random number that
/// selects among weighted backends. `None` means 404.
///
/// Among the listeners of a port, the one with the most specific host name gets the request, and
/// only its routes are considered. The precedence is: host name of the route, exact path, longest
/// regular expression of a path (where the Gateway API leaves it open), longest prefix, method,
/// number of header matches, number of query matches, age, name, position.
///
/// ```
/// use std::sync::Arc;
/// use router_core::fleet::{Fleet, ObjectName};
/// use router_core::route::*;
///
/// let name = |name: &str| ObjectName { namespace: "default".into(), name: name.into() };
/// let rule = |route: &str| {
///     Arc::new(Rule::new(name(route), 0, None, Timeouts::default(), Vec::new()))
/// };
/// let attached = |route: &str, path: &str| AttachedRule {
///     hostname: None,
///     matching: Match { path: PathMatch::prefix(path), ..Match::default() },
///     rule: rule(route),
/// };
/// let routes = vec![attached("all", "/"), attached("chat", "/v1/chat")];
/// let listener = Listener::new(name("gateway"), "http".into(), 8080, None, routes);
/// let fleet = Fleet { listeners: vec![listener], ..Fleet::default() };
///
/// let headers = http::HeaderMap::new();
/// let method = http::Method::POST;
/// let mut head = Head {
///     method: &method,
///     host: Some("localhost:8080"),
///     path: "/v1/chat/completions",
///     query: None,
///     headers: &headers,
/// };
/// let found = find(&fleet, 8080, &head, 0).expect("both routes match");
/// assert_eq!(&*found.route().name, "chat");
/// assert_eq!(found.prefix, Some("/v1/chat"));
/// // A rule without backends is a 500, a port without a listener a 404.
/// assert!(matches!(found.target, Target::Broken { .. }));
/// assert!(find(&fleet, 80, &head, 0).is_none());
/// head.path = "/v1/chats";
/// assert_eq!(&*find(&fleet, 8080, &head, 0).expect("the other route matches").route().name, "all");
/// ```
pub fn find<'f>(fleet: &'f Fleet, port: u16, head: &Head<'_>, draw: u64) -> Option<Found<'f>> {
    let listener = listener(fleet, port, head.host)?;
    let host = head.host.map(host_name).unwrap_or_default();
    let (rule, prefix) = listener.find(host, head)?;
    let backend = rule.draw(draw);
    let Backend { target, filters, mirrors, .. } = backend;
    Some(Found { listener, rule, target, filters, mirrors, prefix })
}

/// The listener on `port`, a port of this process, for `host`: the host of a request, or the server
/// name of a TLS client.
pub fn listener<'f>(fleet: &'f Fleet, port: u16, host: Option<&str>) -> Option<&'f Listener> {
    let host = host.map(host_name).unwrap_or_default();
    let all = fleet.listeners.iter().filter(|listener| listener.socket_port == port);
    all.filter(|listener| listener.takes(host)).min_by(|a, b| a.specificity(b))
}

#[cfg(test)]
mod tests;
