//! [`Match`]: the conditions of one `matches` entry, and whether a request fulfils them.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::{Head, Pattern};

/// A path condition, element by element as the Gateway API defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(Box<str>),
    /// Without a trailing slash. Empty matches every path.
    Prefix(Box<str>),
    Regular(Pattern),
}

impl PathMatch {
    /// A prefix condition. `/v1/` and `/v1` are equal.
    pub fn prefix(value: &str) -> PathMatch {
        PathMatch::Prefix(value.trim_end_matches('/').into())
    }
}

/// The required value of a header or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch<T> {
    Exact(T),
    Regular(Pattern),
}

/// One `matches` entry of a rule. All its conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub path: PathMatch,
    pub method: Option<Method>,
    /// If one name has several conditions, only the first counts, as in the Gateway API.
    pub headers: Vec<(HeaderName, ValueMatch<HeaderValue>)>,
    /// Compared after decoding `%` and `+`. The first occurrence in the request counts.
    pub query: Vec<(Box<str>, ValueMatch<String>)>,
}

impl Default for Match {
    /// A rule without `matches` matches every path.
    fn default() -> Match {
        let path = PathMatch::Prefix("".into());
        Match { path, method: None, headers: Vec::new(), query: Vec::new() }
    }
}

impl Match {
    /// Checks all conditions except the path, which the table has already looked up.
    pub(super) fn meets(&self, head: &Head<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == head.method)
            && self.headers.iter().all(|(name, value)| has_header(head.headers, name, value))
            && self.query.iter().all(|(name, value)| has_query(head.query, name, value))
    }
}

/// Several header lines of one name form one list, joined by commas (RFC 9110, section 5.2).
fn has_header(headers: &HeaderMap, name: &HeaderName, wanted: &ValueMatch<HeaderValue>) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    let Some(second) = values.next() else { return wanted.is(first.as_bytes()) };
    let lines = [first, second].into_iter().chain(values).map(HeaderValue::as_bytes);
    let spaced = lines.enumerate().flat_map(|(index, line)| {
        let comma: &[u8] = if index == 0 { b"" } else { b", " };
        comma.iter().chain(line).copied()
    });
    wanted.made_of(spaced)
}

fn has_query(query: Option<&str>, name: &str, wanted: &ValueMatch<String>) -> bool {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let first = pairs.find(|(key, _)| decoded(key).eq(name.bytes()));
    first.is_some_and(|(_, value)| wanted.made_of(decoded(value)))
}

impl<T: AsRef<[u8]>> ValueMatch<T> {
    fn is(&self, value: &[u8]) -> bool {
        match self {
            ValueMatch::Exact(wanted) => wanted.as_ref() == value,
            ValueMatch::Regular(pattern) => pattern.matches(value),
        }
    }

    /// Compares a value given as an iterator of bytes. Only a pattern collects it.
    fn made_of(&self, value: impl Iterator<Item = u8>) -> bool {
        match self {
            ValueMatch::Exact(wanted) => value.eq(wanted.as_ref().iter().copied()),
            ValueMatch::Regular(pattern) => pattern.matches(&value.collect::<Vec<u8>>()),
        }
    }

    /// The condition as `/fleet` shows it, after the name.
    fn text(&self, equals: &str) -> String {
        match self {
            ValueMatch::Exact(wanted) => {
                format!("{equals}{}", String::from_utf8_lossy(wanted.as_ref()))
            }
            ValueMatch::Regular(pattern) => format!(" ~ {}", pattern.as_str()),
        }
    }
}

/// Decodes `%XX` and `+` without a copy. An invalid escape is kept as it is.
fn decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&byte, tail) = rest.split_first()?;
        rest = tail;
        if byte == b'+' {
            return Some(b' ');
        }
        if let (b'%', [high, low, after @ ..]) = (byte, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            rest = after;
            return Some(high << 4 | low);
        }
        Some(byte)
    })
}

impl Serialize for Match {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Match", 4)?;
        match &self.path {
            PathMatch::Exact(path) => fields.serialize_field("exact", path)?,
            PathMatch::Prefix(path) if path.is_empty() => fields.serialize_field("prefix", "/")?,
            PathMatch::Prefix(path) => fields.serialize_field("prefix", path)?,
            PathMatch::Regular(pattern) => fields.serialize_field("regular", pattern.as_str())?,
        }
        if let Some(method) = &self.method {
            fields.serialize_field("method", method.as_str())?;
        }
        if !self.headers.is_empty() {
            let all = self.headers.iter();
            let all = all.map(|(name, value)| format!("{name}{}", value.text(": ")));
            fields.serialize_field("headers", &all.collect::<Vec<_>>())?;
        }
        if !self.query.is_empty() {
            let all = self.query.iter();
            let all = all.map(|(name, value)| format!("{name}{}", value.text("=")));
            fields.serialize_field("query", &all.collect::<Vec<_>>())?;
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_compared_decoded_and_by_its_first_occurrence() {
        let exact = |value: &str| ValueMatch::Exact(value.into());
        let holds = |query, name, value| has_query(Some(query), name, &exact(value));
        assert!(holds("a=1&b=x%20y", "b", "x y"));
        assert!(holds("b=x+y", "b", "x y"));
        assert!(holds("%62=1", "b", "1"));
        assert!(holds("b", "b", ""));
        assert!(holds("b=%zz", "b", "%zz"));
        assert!(!holds("b=1&b=2", "b", "2"));
        assert!(!holds("bb=1", "b", "1"));
        assert!(!has_query(None, "b", &exact("")));
        let pattern = ValueMatch::Regular(Pattern::new("x y|z").unwrap());
        assert!(has_query(Some("b=x%20y"), "b", &pattern));
        assert!(!has_query(Some("b=x%20y%20z"), "b", &pattern));
        assert!(!has_query(Some("a=z"), "b", &pattern));
    }

    #[test]
    fn several_lines_of_one_header_are_one_list() {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("version");
        headers.append(&name, HeaderValue::from_static("one"));
        let exact = |value| ValueMatch::Exact(HeaderValue::from_static(value));
        let pattern = |text| ValueMatch::Regular(Pattern::new(text).unwrap());
        assert!(has_header(&headers, &name, &exact("one")));
        assert!(has_header(&headers, &name, &pattern("o.e")));
        headers.append(&name, HeaderValue::from_static("two"));
        assert!(has_header(&headers, &name, &exact("one, two")));
        assert!(!has_header(&headers, &name, &exact("one")));
        assert!(has_header(&headers, &name, &pattern("one, t.*")));
        assert!(!has_header(&headers, &name, &pattern("one")));
    }
}
