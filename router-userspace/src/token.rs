//! The token of a Secret, which agents, gateways and admin ports ask each other for.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;

/// A Secret that is mounted changes while the process runs, and may come later than it.
const FRESH: Duration = Duration::from_secs(1);
/// Longer files are no token.
const LONGEST: u64 = 4096;

/// A file with a token: read again when it is older than [`FRESH`].
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    read: Option<Instant>,
    token: Option<Arc<str>>,
}

impl TokenFile {
    pub fn new(path: &Path) -> TokenFile {
        TokenFile { path: path.to_owned(), known: Mutex::default() }
    }

    /// What the file holds, without the space around it; `None` where it is not there, empty, or
    /// cannot be sent in a header.
    pub fn token(&self) -> Option<Arc<str>> {
        let mut known = self.known.lock();
        if known.read.is_none_or(|read| read.elapsed() >= FRESH) {
            let first = known.read.is_none();
            let next = read(&self.path);
            if known.token.is_some() != next.is_some() || first {
                self.tell(next.is_some());
            }
            *known = Known { read: Some(Instant::now()), token: next };
        }
        known.token.clone()
    }

    fn tell(&self, there: bool) {
        let path = self.path.display();
        match there {
            true => tracing::info!(%path, "token read"),
            false => tracing::warn!(%path, "no token there: nobody is admitted until there is"),
        }
    }
}

fn read(path: &Path) -> Option<Arc<str>> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST + 1).read_to_string(&mut text).ok()?;
    let token = text.trim();
    let usable = text.len() as u64 <= LONGEST && token.bytes().all(|byte| byte.is_ascii_graphic());
    (usable && !token.is_empty()).then(|| token.into())
}

/// Who may ask for what is nobody else's business.
#[derive(Debug)]
pub enum Guard {
    /// Whoever has the token, over loopback too.
    Token(TokenFile),
    /// Whoever comes over loopback.
    Loopback,
    /// Everyone, because a flag says so.
    Everyone,
}

impl Guard {
    /// A token where a file is named; else loopback alone, unless a flag opens it for everyone.
    pub fn new(token_file: Option<&Path>, without_token: bool) -> Guard {
        match (token_file, without_token) {
            (_, true) => Guard::Everyone,
            (Some(path), false) => Guard::Token(TokenFile::new(path)),
            (None, false) => Guard::Loopback,
        }
    }

    /// Whether a request with these headers, that came to the address `at`, is answered.
    pub fn admits(&self, headers: &HeaderMap, at: SocketAddr) -> bool {
        match self {
            Guard::Everyone => true,
            Guard::Loopback => at.ip().to_canonical().is_loopback(),
            Guard::Token(file) => {
                let given = headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
                let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
                let token = file.token();
                given.zip(token).is_some_and(|(given, token)| same(given, token.as_bytes()))
            }
        }
    }
}

/// Takes as long for a wrong byte at the start as at the end.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::files::tests::Scratch;

    const OUTSIDE: &str = "10.0.0.1:9901";

    fn admits(guard: &Guard, header: Option<&str>, at: &str) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        guard.admits(&headers, at.parse().unwrap())
    }

    #[test]
    fn without_a_token_only_loopback_is_answered_unless_a_flag_says_so() {
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
    fn a_token_is_asked_for_everywhere_and_compared_whole() {
        let scratch = Scratch::new();
        scratch.write("token", "secret\n");
        let guard = Guard::new(Some(&scratch.path().join("token")), false);
        assert!(admits(&guard, Some("Bearer secret"), OUTSIDE));
        for wrong in
            [None, Some("Bearer "), Some("Bearer secre"), Some("Bearer secreT"), Some("secret")]
        {
            assert!(!admits(&guard, wrong, OUTSIDE), "{wrong:?}");
            assert!(!admits(&guard, wrong, "127.0.0.1:1"), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_without_a_token_admits_nobody() {
        let scratch = Scratch::new();
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
    fn a_token_that_comes_later_or_changes_is_read() {
        let scratch = Scratch::new();
        let file = TokenFile::new(&scratch.path().join("token"));
        assert_eq!(file.token(), None);
        scratch.write("token", "one");
        let later = |file: &TokenFile| {
            file.known.lock().read = Instant::now().checked_sub(FRESH);
            file.token()
        };
        assert_eq!(later(&file).as_deref(), Some("one"));
        scratch.write("token", "two");
        assert_eq!(later(&file).as_deref(), Some("two"));
    }
}
