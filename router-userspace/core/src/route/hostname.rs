//! [`Hostname`]: a host name of a listener or a route, and how host names compare.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// A host name as the Gateway API writes it: exact, or with `*.` before a suffix. Lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hostname {
    /// Without the `*.` of a wildcard.
    name: Arc<str>,
    wildcard: bool,
}

/// Why a text is not a valid host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHostname {
    #[error("is an IP address; the Gateway API allows names only")]
    Address,
    #[error("is not a DNS name")]
    NotADnsName,
}

impl Hostname {
    /// Parses `www.example.com` or `*.example.com`.
    pub fn parse(text: &str) -> Result<Hostname, BadHostname> {
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(suffix) => (true, suffix),
            None => (false, text),
        };
        if text.parse::<std::net::IpAddr>().is_ok() {
            return Err(BadHostname::Address);
        }
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(BadHostname::NotADnsName);
        }
        Ok(Hostname { name: name.to_ascii_lowercase().into(), wildcard })
    }

    /// Whether this name covers `host`. A wildcard matches one or more labels.
    pub fn matches(&self, host: &str) -> bool {
        if !self.wildcard {
            return self.name.eq_ignore_ascii_case(host);
        }
        let Some(cut) = host.len().checked_sub(self.name.len()) else { return false };
        cut >= 2
            && host.as_bytes()[cut - 1] == b'.'
            && host.as_bytes()[cut..].eq_ignore_ascii_case(self.name.as_bytes())
    }

    /// Whether some host matches both names.
    pub fn intersects(&self, other: &Hostname) -> bool {
        match (self.wildcard, other.wildcard) {
            (false, false) => self.name == other.name,
            (true, false) => self.matches(&other.name),
            (false, true) => other.matches(&self.name),
            (true, true) => {
                self.name == other.name || self.matches(&other.name) || other.matches(&self.name)
            }
        }
    }

    /// Exact names before wildcards, longer before shorter: `Less` is more specific.
    pub(super) fn specificity(&self, other: &Hostname) -> Ordering {
        let rank = |host: &Hostname| (host.wildcard, std::cmp::Reverse(host.name.len()));
        rank(self).cmp(&rank(other))
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    pub(super) fn suffix(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wildcard {
            f.write_str("*.")?;
        }
        f.write_str(&self.name)
    }
}

impl Serialize for Hostname {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The host name in a Host header or an `:authority`, without the port and the trailing dot. An
/// IPv6 address keeps its brackets.
pub fn host_name(authority: &str) -> &str {
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let name = &authority[..end];
    name.strip_suffix('.').unwrap_or(name)
}

/// Maximum length of a name in a Host header or an `:authority`.
const MAX_NAME: usize = 255;

/// Whether a text can be a Host header or an `:authority`: a DNS name or an IP address, and a port if
/// it has one. Userinfo is not allowed (RFC 9110, section 4.2.4). Labels are not empty, but for that of
/// the root after a dot at the end, and a name has at most 255 characters (RFC 1035, section 2.3.4).
///
/// ```
/// use router_core::route::is_authority;
///
/// assert!(is_authority("shop.example:8080"));
/// assert!(!is_authority("shop.example:x@evil.example"));
/// ```
pub fn is_authority(text: &str) -> bool {
    let (host_is_valid, rest) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, rest)) => (address.parse::<std::net::Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
            let labels = name.strip_suffix('.').unwrap_or(name);
            let named = name.len() <= MAX_NAME && labels.split('.').all(|label| !label.is_empty());
            (named && name.bytes().all(plain), rest)
        }
    };
    let port_is_valid = match rest.strip_prefix(':') {
        // A port may be empty (RFC 3986, section 3.2.3), but has no sign.
        Some(port) => {
            port.is_empty()
                || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
        }
        None => rest.is_empty(),
    };
    host_is_valid && port_is_valid
}

/// Compares case-insensitively without a copy, in the order in which host tables are sorted.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let fold = |byte: u8| byte.to_ascii_lowercase();
    a.bytes().map(fold).cmp(b.bytes().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Hostname {
        Hostname::parse(text).unwrap()
    }

    #[test]
    fn a_wildcard_matches_one_or_more_labels() {
        let wildcard = host("*.example.com");
        assert!(wildcard.matches("www.example.com"));
        assert!(wildcard.matches("a.b.EXAMPLE.com"));
        assert!(!wildcard.matches("example.com"));
        assert!(!wildcard.matches(".example.com"));
        assert!(!wildcard.matches("wwwexample.com"));
        assert!(!wildcard.matches("www.example.org"));
    }

    #[test]
    fn intersection_is_symmetric_and_exact() {
        for (a, b, expected) in [
            ("example.com", "EXAMPLE.com", true),
            ("example.com", "example.org", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "*.www.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "*.example.org", false),
        ] {
            assert_eq!(host(a).intersects(&host(b)), expected, "{a} {b}");
            assert_eq!(host(b).intersects(&host(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn invalid_host_names_are_rejected() {
        assert_eq!(Hostname::parse("10.0.0.1"), Err(BadHostname::Address));
        for text in ["", "*", "a..b", "-a.com", "a_b.com", "foo.*.com", "example.com:80"] {
            assert_eq!(Hostname::parse(text), Err(BadHostname::NotADnsName), "{text}");
        }
    }

    #[test]
    fn the_port_and_the_trailing_dot_are_stripped() {
        assert_eq!(host_name("example.com:8080"), "example.com");
        assert_eq!(host_name("example.com."), "example.com");
        assert_eq!(host_name("[::1]:8080"), "[::1]");
        assert_eq!(host_name("127.0.0.1:8080"), "127.0.0.1");
    }

    #[test]
    fn an_authority_is_one_host_and_at_most_one_port() {
        let longest = format!("{}a", "a.".repeat(127));
        for text in
            [&*longest, "a", "a.b.", "A_b:80", "a:", "127.0.0.1:1", "[::1]", "[fd00::1]:65535"]
        {
            assert!(is_authority(text), "{text}");
        }
        let too_long = format!("{longest}a");
        for text in [
            &*too_long, "", ".", "h..x", ".h", "h..", "..", ":80", "a:80:90", "a:x@b", "user@a",
            "a:65536", "a:+1", "a b", "a,b", "a/b", "a%2fb", "é", "[::1", "[::1]x", "[a]", "::1",
        ] {
            assert!(!is_authority(text), "{text}");
        }
    }
}
