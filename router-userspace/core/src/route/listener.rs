//! [`Listener`]: one listener of a Gateway with the routes attached to it, compiled.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::hostname::{Hostname, compare};
use super::table::{PathTable, RuleEntry};
use super::{Head, Match, Rule, ServerCertificate};
use crate::fleet::ObjectName;

/// One match of a route on a listener: a host name of the route, a match of a rule, the rule.
#[derive(Clone, Debug)]
pub struct AttachedRule {
    /// `None` if the route names no host, so that the listener's host name alone decides.
    pub hostname: Option<Hostname>,
    pub matching: Match,
    pub rule: Arc<Rule>,
}

/// One listener of a Gateway, compiled for lookup.
#[derive(Clone, Debug)]
pub struct Listener {
    pub gateway: ObjectName,
    pub name: Arc<str>,
    pub port: u16,
    /// The port of this process that the listener is served on. It differs from `port` if a Service
    /// maps the one to the other.
    pub socket_port: u16,
    pub hostname: Option<Hostname>,
    /// The certificates for TLS, the preferred one first. Empty for plain HTTP.
    pub certificates: Vec<ServerCertificate>,
    /// Sorted by name.
    exact: Vec<(Hostname, PathTable)>,
    /// Sorted by suffix.
    wildcard: Vec<(Hostname, PathTable)>,
    any: PathTable,
}

impl Listener {
    /// Compiles the routes of a plain HTTP listener that is served on its own port. Host names of
    /// routes stay as they are: the listener's host name has matched before they are compared.
    pub fn new(
        gateway: ObjectName,
        name: Arc<str>,
        port: u16,
        hostname: Option<Hostname>,
        attached: Vec<AttachedRule>,
    ) -> Listener {
        let mut hosts: Vec<(Option<Hostname>, Vec<RuleEntry>)> = Vec::new();
        for AttachedRule { hostname, matching, rule } in attached {
            let entry = RuleEntry { matching, rule };
            match hosts.iter_mut().find(|(host, _)| *host == hostname) {
                Some((_, entries)) => entries.push(entry),
                None => hosts.push((hostname, vec![entry])),
            }
        }
        let mut listener = Listener {
            gateway,
            name,
            port,
            socket_port: port,
            hostname,
            certificates: Vec::new(),
            exact: Vec::new(),
            wildcard: Vec::new(),
            any: PathTable::default(),
        };
        for (host, entries) in hosts {
            let table = PathTable::new(entries);
            match host {
                Some(host) if host.is_wildcard() => listener.wildcard.push((host, table)),
                Some(host) => listener.exact.push((host, table)),
                None => listener.any = table,
            }
        }
        for rows in [&mut listener.exact, &mut listener.wildcard] {
            rows.sort_by(|(a, _), (b, _)| compare(a.suffix(), b.suffix()));
        }
        listener
    }

    /// Whether the listener uses TLS.
    pub fn secure(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// The attached routes.
    pub fn routes(&self) -> BTreeSet<&ObjectName> {
        let tables = self.exact.iter().chain(&self.wildcard).map(|(_, table)| table);
        tables.chain([&self.any]).flat_map(PathTable::routes).collect()
    }

    /// Whether this listener's host name covers `host`.
    pub(super) fn takes(&self, host: &str) -> bool {
        self.hostname.as_ref().is_none_or(|hostname| hostname.matches(host))
    }

    /// `Less` is more specific.
    pub(super) fn specificity(&self, other: &Listener) -> Ordering {
        match (&self.hostname, &other.hostname) {
            (Some(a), Some(b)) => a.specificity(b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }

    /// The rule for a request to this listener. The most specific host name is tried first; if none
    /// of its matches holds, the next host name is tried.
    pub(super) fn find(&self, host: &str, head: &Head<'_>) -> Option<(&Rule, Option<&str>)> {
        let exact = row(&self.exact, host).and_then(|table| table.find(head));
        exact.or_else(|| self.find_wildcard(host, head)).or_else(|| self.any.find(head))
    }

    fn find_wildcard(&self, host: &str, head: &Head<'_>) -> Option<(&Rule, Option<&str>)> {
        if self.wildcard.is_empty() {
            return None;
        }
        // From the left: the longest suffix is the most specific. A dot at the start has no label
        // before it.
        let dots = host.bytes().enumerate().skip(1).filter(|(_, byte)| *byte == b'.');
        dots.filter_map(|(dot, _)| row(&self.wildcard, &host[dot + 1..]))
            .find_map(|table| table.find(head))
    }

    fn tables(&self) -> impl Iterator<Item = (Option<&Hostname>, &PathTable)> {
        let mut named: Vec<&(Hostname, PathTable)> =
            self.exact.iter().chain(&self.wildcard).collect();
        named.sort_by(|(a, _), (b, _)| a.specificity(b));
        let any = std::iter::once((None, &self.any));
        named.into_iter().map(|(host, table)| (Some(host), table)).chain(any)
    }

    /// Every rule with its match, in the order in which they are tried.
    pub fn rules(&self) -> impl Iterator<Item = (Option<&Hostname>, &Match, &Arc<Rule>)> {
        self.tables().flat_map(|(host, table)| {
            table.entries().map(move |entry| (host, &entry.matching, &entry.rule))
        })
    }
}

fn row<'t>(rows: &'t [(Hostname, PathTable)], name: &str) -> Option<&'t PathTable> {
    let at = rows.binary_search_by(|(host, _)| compare(host.suffix(), name)).ok()?;
    Some(&rows[at].1)
}

#[derive(serde::Serialize)]
struct HostView<'a> {
    host: Option<&'a Hostname>,
    matches: Vec<&'a RuleEntry>,
}

impl Serialize for Listener {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let views = self
            .tables()
            .map(|(host, table)| HostView { host, matches: table.entries().collect() });
        let mut fields = serializer.serialize_struct("Listener", 7)?;
        fields.serialize_field("gateway", &self.gateway)?;
        fields.serialize_field("name", &self.name)?;
        fields.serialize_field("port", &self.port)?;
        if self.socket_port != self.port {
            fields.serialize_field("socket_port", &self.socket_port)?;
        }
        if !self.certificates.is_empty() {
            fields.serialize_field("certificates", &self.certificates)?;
        }
        fields.serialize_field("hostname", &self.hostname)?;
        let views: Vec<HostView<'_>> = views.filter(|view| !view.matches.is_empty()).collect();
        fields.serialize_field("routes", &views)?;
        fields.end()
    }
}
