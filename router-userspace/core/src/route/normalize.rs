//! [`normalize_path`]: one spelling for each path, so that a route is chosen by the path that the
//! backend serves (RFC 3986, section 6.2.2).

use std::borrow::Cow;

/// What is done with `%2F` and `%5C`. Some servers read them as slashes, so that a backend may see
/// more segments than the routes do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// The request is refused.
    #[default]
    Reject,
    /// They become slashes before a route is chosen.
    Unescape,
    /// They stay as they are.
    Keep,
}

/// How paths are normalized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    pub escaped_slashes: EscapedSlashes,
    /// Whether several slashes in a row become one.
    pub merge_slashes: bool,
}

/// Why a path cannot be normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("the path contains an escaped slash or backslash (%2F or %5C)")]
    EscapedSlash,
    #[error("the path contains `..` segments that lead above its root")]
    AboveRoot,
}

/// Segments of a model's name, which may contain escaped slashes: an engine reads them as part of the
/// name, and a pool serves no other path below this one.
const MODEL_NAME: &str = "/v1/models/";

/// The path in its normal form: without `.` and `..` segments, with backslashes as slashes, without
/// escapes that mean the same as the character (`%41` is `A`), and with `%25` for a `%` that begins no
/// escape. To normalize a normal form changes nothing.
///
/// ```
/// use router_core::route::{BadPath, PathRules, normalize_path};
///
/// let rules = PathRules::default();
/// assert_eq!(normalize_path("/public/%2e%2E/admin", rules).unwrap(), "/admin");
/// assert_eq!(normalize_path("/public/..%2fadmin", rules), Err(BadPath::EscapedSlash));
/// ```
///
/// # Errors
/// The path contains an escaped slash that the rules reject, or leads above the root.
pub fn normalize_path(path: &str, rules: PathRules) -> Result<Cow<'_, str>, BadPath> {
    let changes = path.bytes().any(|byte| matches!(byte, b'%' | b'\\'))
        || path.contains("/.")
        || (rules.merge_slashes && path.contains("//"));
    // `*` of OPTIONS and an empty path have no segments.
    if !changes || !path.starts_with('/') {
        return Ok(Cow::Borrowed(path));
    }
    let normal = resolve(&unescape(path, rules.escaped_slashes), rules.merge_slashes)?;
    match rules.escaped_slashes {
        EscapedSlashes::Reject if has_escaped_slash(&normal) && !is_model_name(&normal) => {
            Err(BadPath::EscapedSlash)
        }
        _ => Ok(Cow::Owned(normal)),
    }
}

fn has_escaped_slash(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.windows(3).any(|w| w.eq_ignore_ascii_case(b"%2f") || w.eq_ignore_ascii_case(b"%5c"))
}

/// Whether a path names a model, without dot segments between escaped slashes.
fn is_model_name(path: &str) -> bool {
    let Some(name) = path.strip_prefix(MODEL_NAME) else { return false };
    let name = name.to_ascii_lowercase().replace("%2f", "/").replace("%5c", "/");
    !name.split('/').any(|segment| matches!(without_parameters(segment), "." | ".."))
}

/// A segment as servers of servlets compare it: they remove its parameters (RFC 3986, section 3.3) before
/// they resolve dot segments, so that `..;` and `..;x=1` lead to the parent.
fn without_parameters(segment: &str) -> &str {
    segment.split(';').next().unwrap_or(segment)
}

fn unescape(path: &str, slashes: EscapedSlashes) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let escape = rest.get(1..3).filter(|_| rest.starts_with('%'));
        let byte = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let length = match byte {
            // `+1` is no escape, though it is a number.
            Some(byte) if !rest[1..].starts_with('+') => {
                match byte {
                    b'/' | b'\\' if slashes == EscapedSlashes::Unescape => out.push('/'),
                    _ if is_unreserved(byte) => out.push(char::from(byte)),
                    _ => out.push_str(&rest[..3]),
                }
                3
            }
            // A `%` without digits would make an escape with what is unescaped after it: `%%32e`
            // would become `%2e`, which a backend reads as a dot.
            _ => {
                out.push_str(if rest.starts_with('%') { "%25" } else { "/" });
                1
            }
        };
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The characters that mean the same escaped and not (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Resolves `.` and `..` segments. `path` begins with a slash.
fn resolve(path: &str, merge_slashes: bool) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match without_parameters(segment) {
            "." => {}
            ".." => {
                let parent = out.rfind('/').ok_or(BadPath::AboveRoot)?;
                out.truncate(parent);
            }
            _ if segment.is_empty() && merge_slashes && !is_last => continue,
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        // `/a/..` and `/a/.` name folders.
        if is_last {
            out.push('/');
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(path: &str) -> Result<String, BadPath> {
        normalize_path(path, PathRules::default()).map(Cow::into_owned)
    }

    #[test]
    fn every_spelling_of_a_dot_segment_is_resolved() {
        for path in [
            "/public/../admin/x",
            "/public/%2e%2e/admin/x",
            "/public/.%2E/admin/x",
            "/public/./../admin/x",
            "/public\\..\\admin/x",
            "/a/b/../../admin/x",
            "/%61dmin/x",
            "/public/..;/admin/x",
            "/public/%2e.;a=b;c/admin/x",
            "/public/.;x/../admin/x",
        ] {
            assert_eq!(normal(path).unwrap(), "/admin/x", "{path}");
        }
        for (path, expected) in [
            ("/", "/"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a//../b", "/a/b"),
            ("/...", "/..."),
            ("/a/...;x/b;c/;/d", "/a/...;x/b;c/;/d"),
            ("/a/b/..;", "/a/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%zz%", "/a%25zz%25"),
            ("/a%+1", "/a%25+1"),
            ("/public/%%32e%%32e/admin", "/public/%252e%252e/admin"),
            ("/caf%C3%A9", "/caf%C3%A9"),
            ("*", "*"),
        ] {
            assert_eq!(normal(path).unwrap(), expected, "{path}");
        }
        assert_eq!(normal("/../admin"), Err(BadPath::AboveRoot));
        assert_eq!(normal("/..;x/admin"), Err(BadPath::AboveRoot));
    }

    #[test]
    fn escaped_slashes_follow_the_rules() {
        let with = |escaped_slashes, path| {
            let rules = PathRules { escaped_slashes, merge_slashes: false };
            normalize_path(path, rules).map(Cow::into_owned)
        };
        for path in ["/public/..%2fadmin", "/public/..%5Cadmin"] {
            assert_eq!(with(EscapedSlashes::Reject, path), Err(BadPath::EscapedSlash));
            assert_eq!(with(EscapedSlashes::Unescape, path).unwrap(), "/admin");
            assert_eq!(with(EscapedSlashes::Keep, path).unwrap(), path);
        }
        let model = "/v1/models/Qwen%2FQwen3";
        assert_eq!(normal(model).unwrap(), model);
        for path in ["/v1/models/..%2fadmin", "/v1/models/x/../../admin%2fx"] {
            assert_eq!(normal(path), Err(BadPath::EscapedSlash), "{path}");
        }
        // What is unescaped makes no new escape.
        let model = normal("/v1/models/%%32e%%32e%2fx").unwrap();
        assert_eq!(model, "/v1/models/%252e%252e%2fx");
        let slash = with(EscapedSlashes::Unescape, "/public/..%%32fadmin").unwrap();
        assert_eq!(slash, "/public/..%252fadmin");
    }

    #[test]
    fn slashes_are_merged_if_the_rules_say_so() {
        let rules = PathRules { merge_slashes: true, ..PathRules::default() };
        assert_eq!(normalize_path("//a///b//", rules).unwrap(), "/a/b/");
        assert_eq!(normal("//a").unwrap(), "//a");
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_as_it_is(
            path in "/(v1/models/)?([abef25./;\\\\]|%2[eE5fF]|%5c|%41|%32|%|é){0,12}",
            merge_slashes: bool,
        ) {
            use EscapedSlashes::{Keep, Reject, Unescape};
            for escaped_slashes in [Reject, Unescape, Keep] {
                let rules = PathRules { escaped_slashes, merge_slashes };
                if let Ok(once) = normalize_path(&path, rules) {
                    prop_assert!(once.starts_with('/'));
                    prop_assert!(!once.split('/').map(without_parameters).any(|s| s == "." || s == ".."));
                    prop_assert_eq!(normalize_path(&once, rules), Ok(once.clone()));
                }
            }
        }
    }
}
