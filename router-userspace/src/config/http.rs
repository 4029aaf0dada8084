//! Flags that control which requests are accepted, and what is added to them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use router_core::route::{Cors, CorsList, EscapedSlashes, OriginPattern, PathRules};
use router_core::sglang::AllowedFields;

/// Seconds for which a browser keeps the answer to a preflight request, as with sglang-router.
const PREFLIGHT_MAX_AGE: u32 = 3600;

/// How requests are normalized and forwarded.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpFlags {
    /// Networks of the proxies in front of the gateway. Their X-Forwarded-For, X-Forwarded-Proto,
    /// X-Forwarded-Host and Forwarded fields are kept; those of other clients are overwritten or
    /// removed.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = IpPrefix::parse)]
    pub trusted_proxies: Vec<IpPrefix>,
    /// What is done with a path that contains an escaped slash or backslash (%2F, %5C). Names of
    /// models below /v1/models/ may contain them in any case.
    #[arg(long, value_enum, default_value_t = EscapedSlashChoice::Reject)]
    pub escaped_slashes: EscapedSlashChoice,
    /// Replace several slashes in a row by one before a route is chosen.
    #[arg(long)]
    pub merge_slashes: bool,
    /// Further fields of request bodies that clients may send to engines: on /generate, /encode and
    /// /classify those that a newer engine has, on every path those that engines otherwise set
    /// themselves, such as mm_hashes. Fields that the gateway sets, such as bootstrap_room and rid, cannot
    /// be allowed.
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',')]
    pub allow_fields: Vec<String>,
    /// Origins of the web pages that may call the gateway, such as `https://*.shop.example`; `*` for
    /// every origin, `none` for none. Preflight requests are answered, and the CORS fields of engines and
    /// backends replaced. An HTTPRoute with a CORS filter is not affected. Without this flag, every
    /// origin is allowed with --pd-disaggregation, as by sglang-router; otherwise nothing is added.
    #[arg(
        long,
        value_name = "ORIGIN",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = CorsOrigin::parse
    )]
    pub cors_allowed_origins: Vec<CorsOrigin>,
    /// Time without a byte on a streamed response of a pool after which a comment (`: ping`) is sent, so
    /// that no proxy or client takes the connection for dead. A request that waits as long for its first
    /// event, in the queue or for its prefill, gets status 200 with the first comment; a failure after
    /// that is an error event in the stream. Without this flag, the status is sent with the first event.
    #[arg(long, value_parser = super::duration, value_name = "DURATION")]
    pub sse_ping_interval: Option<Duration>,
}

/// A value of --cors-allowed-origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigin {
    None,
    Pattern(OriginPattern),
}

impl CorsOrigin {
    fn parse(text: &str) -> Result<CorsOrigin, String> {
        if text == "none" {
            return Ok(CorsOrigin::None);
        }
        let pattern = OriginPattern::parse(text);
        pattern.map(CorsOrigin::Pattern).map_err(|error| format!("`{text}` {error}, or `none`"))
    }
}

impl HttpFlags {
    /// The policy for requests of routes without a CORS filter. `all_by_default`: every origin is allowed
    /// without the flag.
    ///
    /// # Errors
    /// `none` stands beside origins.
    pub(crate) fn cors(&self, all_by_default: bool) -> Result<Option<Arc<Cors>>> {
        let allow_origins = match self.cors_allowed_origins.as_slice() {
            [] if all_by_default => vec![OriginPattern::Any],
            [] => return Ok(None),
            [CorsOrigin::None] => Vec::new(),
            origins => {
                let pattern = |origin: &CorsOrigin| match origin {
                    CorsOrigin::None => None,
                    CorsOrigin::Pattern(pattern) => Some(pattern.clone()),
                };
                let Some(patterns) = origins.iter().map(pattern).collect() else {
                    bail!("--cors-allowed-origins: `none` must stand alone");
                };
                patterns
            }
        };
        Ok(Some(Arc::new(Cors {
            allow_origins,
            allow_credentials: false,
            allow_methods: CorsList::All,
            allow_headers: CorsList::All,
            expose_headers: CorsList::All,
            max_age: PREFLIGHT_MAX_AGE,
        })))
    }

    /// # Errors
    /// A field is set by the gateway itself.
    pub(super) fn allowed_fields(&self) -> Result<AllowedFields> {
        AllowedFields::new(&self.allow_fields).map_err(|why| anyhow!("--allow-fields: {why}"))
    }

    pub(crate) fn path_rules(&self) -> PathRules {
        let escaped_slashes = match self.escaped_slashes {
            EscapedSlashChoice::Reject => EscapedSlashes::Reject,
            EscapedSlashChoice::Unescape => EscapedSlashes::Unescape,
            EscapedSlashChoice::Keep => EscapedSlashes::Keep,
        };
        PathRules { escaped_slashes, merge_slashes: self.merge_slashes }
    }

    /// Whether a client is a proxy of --trusted-proxies.
    pub(crate) fn trusts(&self, client: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(client))
    }
}

/// The values of --escaped-slashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EscapedSlashChoice {
    /// Answer 400.
    #[default]
    Reject,
    /// Replace them by slashes before a route is chosen.
    Unescape,
    /// Forward them as they are. A backend may then see segments that no route has matched.
    Keep,
}

/// The addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPrefix {
    address: IpAddr,
    /// Length of the prefix in bits.
    bits: u8,
}

impl IpPrefix {
    /// Parses `10.0.0.0/8`, `fd00::/8` or one address.
    fn parse(text: &str) -> Result<IpPrefix, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let bad = || format!("`{text}` must be an IP address or a network such as 10.0.0.0/8");
        let address: IpAddr = address.trim().parse().map_err(|_| bad())?;
        let most: u8 = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.trim().parse().map_err(|_| bad()))?;
        if bits > most {
            return Err(format!("`{text}`: the prefix has more than {most} bits"));
        }
        Ok(IpPrefix { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = u32::from(network) ^ u32::from(address);
                differing.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = u128::from(network) ^ u128::from(address);
                differing.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_the_addresses_with_its_prefix() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
        ] {
            let contains = IpPrefix::parse(network).unwrap().contains(address.parse().unwrap());
            assert_eq!(contains, expected, "{network} {address}");
        }
    }

    #[test]
    fn origins_are_allowed_by_the_flag_and_by_default_with_flags_only() {
        let flags = |origins: &[&str]| HttpFlags {
            cors_allowed_origins: origins.iter().map(|o| CorsOrigin::parse(o).unwrap()).collect(),
            ..HttpFlags::default()
        };
        let allowed = |flags: HttpFlags, default| {
            flags.cors(default).unwrap().map(|cors| cors.allow_origins.clone())
        };
        assert_eq!(allowed(flags(&[]), false), None);
        assert_eq!(allowed(flags(&[]), true), Some(vec![OriginPattern::Any]));
        assert_eq!(allowed(flags(&["none"]), true), Some(Vec::new()));
        let two = ["https://a.b", "http://localhost:3000"];
        assert_eq!(allowed(flags(&two), true).map(|origins| origins.len()), Some(2));
        let error = flags(&["none", "*"]).cors(true).unwrap_err().to_string();
        assert!(error.contains("--cors-allowed-origins"), "{error}");
        assert!(CorsOrigin::parse("shop.example").unwrap_err().contains("`shop.example`"));
    }

    #[test]
    fn an_invalid_network_is_named() {
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(IpPrefix::parse(text).unwrap_err().contains(&format!("`{text}`")), "{text}");
        }
    }
}
