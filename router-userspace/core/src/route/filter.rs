//! [`Filters`]: what a rule changes in the request and the response.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use super::Cors;

/// One change to a header map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderEdit {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// What replaces the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathEdit {
    ReplaceFullPath(Box<str>),
    ReplacePrefixMatch(Box<str>),
}

/// The filters of a rule, followed by those of the selected backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filters {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request: Vec<HeaderEdit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response: Vec<HeaderEdit>,
    /// URLRewrite's `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathEdit>,
    /// URLRewrite's `hostname`: the Host that the backend sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Arc<Cors>>,
}

impl Filters {
    pub fn is_empty(&self) -> bool {
        *self == Filters::default()
    }

    /// These filters followed by those of a backend.
    pub fn then(&self, backend: Filters) -> Filters {
        let mut all = self.clone();
        all.request.extend(backend.request);
        all.response.extend(backend.response);
        all.path = backend.path.or(all.path);
        all.host = backend.host.or(all.host);
        all.cors = backend.cors.or(all.cors);
        all
    }

    /// Changes the request's headers. Call it before the gateway's own headers are set.
    pub fn apply_request(&self, headers: &mut HeaderMap) {
        apply(&self.request, headers);
    }

    /// Changes the response's headers.
    pub fn apply_response(&self, headers: &mut HeaderMap) {
        apply(&self.response, headers);
    }

    /// The path and query that the backend sees. `matched` is [`super::Found::prefix`].
    pub fn rewrite<'a>(&self, path_and_query: &'a str, matched: Option<&str>) -> Cow<'a, str> {
        let Some(edit) = &self.path else { return Cow::Borrowed(path_and_query) };
        let cut = path_and_query.find('?').unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(cut);
        Cow::Owned(edit.apply(path, matched) + query)
    }
}

impl PathEdit {
    /// The new path, always with a leading slash. Elements stay whole: replacing `/foo` by `/x/`
    /// in `/foo/bar` gives `/x/bar`.
    pub(super) fn apply(&self, path: &str, matched: Option<&str>) -> String {
        match self {
            PathEdit::ReplaceFullPath(full) => rooted(full, ""),
            PathEdit::ReplacePrefixMatch(prefix) => {
                let rest = matched.and_then(|matched| path.strip_prefix(matched)).unwrap_or("");
                let keeps_slash = rest.starts_with('/');
                rooted(if keeps_slash { prefix.trim_end_matches('/') } else { prefix }, rest)
            }
        }
    }
}

fn rooted(start: &str, rest: &str) -> String {
    let slash = if start.starts_with('/') || (start.is_empty() && rest.starts_with('/')) {
        ""
    } else {
        "/"
    };
    format!("{slash}{start}{rest}")
}

fn apply(edits: &[HeaderEdit], headers: &mut HeaderMap) {
    for edit in edits {
        match edit {
            HeaderEdit::Set(name, value) => {
                headers.insert(name, value.clone());
            }
            HeaderEdit::Add(name, value) => {
                headers.append(name, value.clone());
            }
            HeaderEdit::Remove(name) => {
                headers.remove(name);
            }
        }
    }
}

impl Serialize for HeaderEdit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        match self {
            HeaderEdit::Set(name, value) => {
                serializer.collect_str(&format_args!("set {name}: {}", text(value)))
            }
            HeaderEdit::Add(name, value) => {
                serializer.collect_str(&format_args!("add {name}: {}", text(value)))
            }
            HeaderEdit::Remove(name) => serializer.collect_str(&format_args!("remove {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the Gateway API's `replacePrefixMatch`.
    #[test]
    fn a_replaced_prefix_keeps_path_elements_whole() {
        for (path, matched, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/", "/foo", "/xyz/", "/xyz/"),
            ("/foo", "/foo", "/xyz/", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "", "/v2", "/v2/foo"),
            ("/", "", "/v2", "/v2/"),
        ] {
            let edit = PathEdit::ReplacePrefixMatch(replacement.into());
            assert_eq!(edit.apply(path, Some(matched)), expected, "{path} {replacement:?}");
        }
    }

    #[test]
    fn a_rewritten_path_keeps_the_query() {
        let path = Some(PathEdit::ReplaceFullPath("/generate".into()));
        let filters = Filters { path, ..Filters::default() };
        assert_eq!(filters.rewrite("/v1/x?a=/v1", Some("/v1")), "/generate?a=/v1");
        assert_eq!(Filters::default().rewrite("/v1?a", None), "/v1?a");
    }

    #[test]
    fn edits_of_the_backend_come_after_those_of_the_rule() {
        let name = HeaderName::from_static("x-a");
        let set = |value| HeaderEdit::Set(name.clone(), HeaderValue::from_static(value));
        let rule = Filters { request: vec![set("rule")], ..Filters::default() };
        let add = HeaderEdit::Add(name.clone(), HeaderValue::from_static("more"));
        let path = Some(PathEdit::ReplaceFullPath("/backend".into()));
        let own = Filters { request: vec![set("backend"), add], path, ..Filters::default() };
        let both = rule.then(own);
        assert_eq!(both.rewrite("/", None), "/backend");
        assert_eq!(both.then(Filters::default()), both);
        let mut headers = HeaderMap::new();
        both.apply_request(&mut headers);
        assert!(headers.get_all(&name).iter().eq(["backend", "more"]));
        let gone = Filters { request: vec![HeaderEdit::Remove(name.clone())], ..rule };
        gone.apply_request(&mut headers);
        assert!(headers.is_empty());
    }
}
