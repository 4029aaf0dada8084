//! Bearer tokens: the token file of a mounted Secret, and the check of requests against it.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST};
use http::uri::Authority;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;

/// Age at which a token file is read again: a mounted Secret may appear or change while the process
/// runs.
const MAX_AGE: Duration = Duration::from_secs(1);
/// Maximum size of a token file. A larger file holds no valid token.
const MAX_TOKEN_BYTES: u64 = 4096;

/// A file with a token, which is read again once it is older than [`MAX_AGE`].
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    cached: Mutex<CachedToken>,
}

#[derive(Debug, Default)]
struct CachedToken {
    read_at: Option<Instant>,
    token: Option<Arc<str>>,
}

impl TokenFile {
    pub fn new(path: &Path) -> TokenFile {
        TokenFile { path: path.to_owned(), cached: Mutex::default() }
    }

    /// Returns the content of the file without surrounding white space, or `None` if the file does
    /// not exist, is empty, or holds characters that a header cannot carry.
    pub fn token(&self) -> Option<Arc<str>> {
        let mut cached = self.cached.lock();
        if cached.read_at.is_none_or(|read_at| read_at.elapsed() >= MAX_AGE) {
            let first = cached.read_at.is_none();
            let token = read(&self.path);
            if cached.token.is_some() != token.is_some() || first {
                self.log(token.is_some());
            }
            *cached = CachedToken { read_at: Some(Instant::now()), token };
        }
        cached.token.clone()
    }

    fn log(&self, usable: bool) {
        let path = self.path.display();
        match usable {
            true => tracing::info!(%path, "token file read"),
            false => {
                tracing::warn!(%path, "token file missing or invalid");
            }
        }
    }
}

fn read(path: &Path) -> Option<Arc<str>> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).ok()?;
    let token = text.trim();
    let fits = text.len() as u64 <= MAX_TOKEN_BYTES;
    let usable = fits && token.bytes().all(|byte| byte.is_ascii_graphic());
    (usable && !token.is_empty()).then(|| token.into())
}

/// Which requests may read protected endpoints.
#[derive(Debug)]
pub enum Guard {
    /// Requests with the token in this file, also over loopback.
    Token(TokenFile),
    /// Requests to a loopback address whose `Host` is an IP address or `localhost`.
    Loopback,
    /// All requests, because a flag allows it.
    Everyone,
}

impl Guard {
    /// Requires the token of `token_file` if there is one. Otherwise only loopback is allowed,
    /// unless `allow_unauthenticated` is set.
    pub fn new(token_file: Option<&Path>, allow_unauthenticated: bool) -> Guard {
        match (token_file, allow_unauthenticated) {
            (_, true) => Guard::Everyone,
            (Some(path), false) => Guard::Token(TokenFile::new(path)),
            (None, false) => Guard::Loopback,
        }
    }

    /// Whether requests need a token, whether or not there is one at the moment.
    pub(crate) fn needs_token(&self) -> bool {
        matches!(self, Guard::Token(_))
    }

    /// The token that requests need, if the guard has a file with one.
    pub(crate) fn token(&self) -> Option<Arc<str>> {
        match self {
            Guard::Token(file) => file.token(),
            Guard::Loopback | Guard::Everyone => None,
        }
    }

    /// The text of a 401, for whom this guard does not admit.
    pub(crate) fn refusal(&self) -> &'static str {
        match self {
            Guard::Token(_) => "a bearer token is needed\n",
            Guard::Loopback | Guard::Everyone => {
                "no token is configured: this path answers over loopback only, to a Host that is an IP \
                 address or localhost\n"
            }
        }
    }

    /// Whether a request with these headers to the local address `at` is allowed.
    pub fn admits(&self, headers: &HeaderMap, at: SocketAddr) -> bool {
        match self {
            Guard::Everyone => true,
            Guard::Loopback => {
                at.ip().to_canonical().is_loopback()
                    && headers.get_all(HOST).iter().all(|host| is_local_host(host.as_bytes()))
            }
            Guard::Token(file) => {
                let given = headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
                let given = given.and_then(bearer_token);
                let token = file.token();
                // In constant time, so that response times do not reveal a matching prefix.
                given.zip(token).is_some_and(|(given, token)| given.ct_eq(token.as_bytes()).into())
            }
        }
    }
}

/// The token of a field with the scheme `Bearer`, whose name is case-insensitive (RFC 9110, section
/// 11.1).
fn bearer_token(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Whether a `Host` is an IP address or `localhost`, with any port. With DNS rebinding, a page of another
/// site has its own name resolve to the loopback address: its requests have that name in `Host`.
fn is_local_host(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::files::tests::TempDirectory;

    const OUTSIDE: &str = "10.0.0.1:9901";

    fn admits(guard: &Guard, header: Option<&str>, at: &str) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        guard.admits(&headers, at.parse().unwrap())
    }

    #[test]
    fn without_a_token_only_loopback_is_allowed_unless_a_flag_allows_everyone() {
        let guard = Guard::new(None, false);
        for (at, admitted) in [
            ("127.0.0.5:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            (OUTSIDE, false),
        ] {
            assert_eq!(admits(&guard, None, at), admitted, "{at}");
        }
        assert!(admits(&Guard::new(None, true), None, OUTSIDE));
    }

    #[test]
    fn over_loopback_a_host_must_be_an_address_or_localhost() {
        let admits = |guard: &Guard, hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            guard.admits(&headers, "127.0.0.1:1".parse().unwrap())
        };
        let guard = Guard::new(None, false);
        for host in ["127.0.0.1:1", "10.0.0.1", "localhost:1", "LOCALHOST", "[::1]:1", "[::1]"] {
            assert!(admits(&guard, &[host]), "{host}");
        }
        assert!(admits(&guard, &[]), "HTTP/1.0 needs no Host");
        for host in
            ["evil.example", "evil.example:9901", "localhost.evil.example", "", "a b", "::1"]
        {
            assert!(!admits(&guard, &[host]), "{host}");
        }
        assert!(!admits(&guard, &["localhost", "evil.example"]));
        // The flag opens the port to all.
        assert!(admits(&Guard::new(None, true), &["evil.example"]));
    }

    #[test]
    fn a_token_is_required_also_over_loopback_and_compared_whole() {
        let scratch = TempDirectory::new();
        scratch.write("token", "secret\n");
        let guard = Guard::new(Some(&scratch.path().join("token")), false);
        assert!(admits(&guard, Some("Bearer secret"), OUTSIDE));
        assert!(admits(&guard, Some("bearer secret"), OUTSIDE));
        for wrong in
            [None, Some("Bearer "), Some("Bearer secre"), Some("Bearer secreT"), Some("secret")]
        {
            assert!(!admits(&guard, wrong, OUTSIDE), "{wrong:?}");
            assert!(!admits(&guard, wrong, "127.0.0.1:1"), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_without_a_valid_token_rejects_every_request() {
        let scratch = TempDirectory::new();
        scratch.write("empty", " \n");
        scratch.write("long", &"x".repeat(5000));
        scratch.write("lines", "one\ntwo");
        for name in ["none", "empty", "long", "lines"] {
            let file = TokenFile::new(&scratch.path().join(name));
            assert_eq!(file.token(), None, "{name}");
        }
        let guard = Guard::new(Some(&scratch.path().join("empty")), false);
        assert!(!admits(&guard, Some("Bearer "), "127.0.0.1:1"));
    }

    #[test]
    fn a_token_that_appears_or_changes_is_read_again() {
        let scratch = TempDirectory::new();
        let file = TokenFile::new(&scratch.path().join("token"));
        assert_eq!(file.token(), None);
        scratch.write("token", "one");
        let later = |file: &TokenFile| {
            file.cached.lock().read_at = Instant::now().checked_sub(MAX_AGE);
            file.token()
        };
        assert_eq!(later(&file).as_deref(), Some("one"));
        scratch.write("token", "two");
        assert_eq!(later(&file).as_deref(), Some("two"));
    }
}
