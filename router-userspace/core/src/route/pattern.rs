//! [`Pattern`]: a regular expression of a match, compiled, with limits.

use regex::bytes::{Regex, RegexBuilder};

/// Maximum size of a compiled pattern in bytes, and of its cache per thread.
const MAX_COMPILED: usize = 256 << 10;
/// Maximum nesting of groups.
const MAX_NESTING: u32 = 64;

/// A regular expression that must match the whole value, as with RE2 in Envoy. Matching takes time
/// linear in the value, classes such as `\d` mean ASCII, and there are neither back references nor
/// look-around.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    compiled: Regex,
}

/// Why a text is not a valid pattern.
#[derive(Debug, thiserror::Error)]
pub enum BadPattern {
    #[error("it takes more than {MAX_COMPILED} bytes when compiled")]
    TooLarge,
    /// The reason in one line, without the regex crate's drawing of the position.
    #[error("{0}")]
    Syntax(String),
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// The text is not a regular expression of this kind, or too large when compiled.
    pub fn new(text: &str) -> Result<Pattern, BadPattern> {
        // Alone first: `a)|(b` is invalid, but would be valid inside the group below.
        compile(text)?;
        let compiled = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Pattern { text: text.into(), compiled })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches all of `value`.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.compiled.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

fn compile(text: &str) -> Result<Regex, BadPattern> {
    let built = RegexBuilder::new(text)
        .unicode(false)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(MAX_NESTING)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => BadPattern::TooLarge,
        other => {
            let text = other.to_string();
            let last = text.lines().next_back().unwrap_or_default();
            BadPattern::Syntax(last.trim_start_matches("error: ").to_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(pattern: &str, value: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(value.as_bytes())
    }

    #[test]
    fn the_whole_value_must_match() {
        assert!(holds("/v[0-9]+/chat", "/v1/chat"));
        assert!(!holds("/v[0-9]+/chat", "/v1/chat/completions"));
        assert!(!holds("/v[0-9]+", "/api/v1"));
        // All alternatives are anchored, and the longer one matches although the shorter comes
        // first.
        assert!(holds("/a|/ab", "/ab"));
        assert!(!holds("/a|/b", "/ab"));
        assert!(!holds("a", "a\n"));
        // Flags work. A comment that would hide the rest of the line does not compile.
        assert!(holds("(?i)qwen.*", "Qwen3-32B"));
        assert!(Pattern::new("(?x)a # comment").is_err());
    }

    #[test]
    fn classes_mean_ascii_and_bytes_need_not_be_text() {
        assert!(!holds(r"\d", "٣"));
        assert!(holds("é+", "éé"));
        assert!(Pattern::new(".*x").unwrap().matches(b"\xff\xfex"));
    }

    #[test]
    fn an_invalid_pattern_gives_a_one_line_error() {
        for (pattern, words) in [
            ("/a(", "unclosed group"),
            ("a)|(b", "unopened group"),
            (r"(a)\1", "backreferences are not supported"),
            ("a(?=b)", "look-around"),
            ("(a{1000}){1000}", "more than 262144 bytes"),
        ] {
            let error = Pattern::new(pattern).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{pattern}: {error}");
        }
        assert!(Pattern::new(&"(".repeat(100)).is_err());
    }

    #[test]
    fn patterns_that_backtrack_exponentially_match_in_linear_time() {
        let value = "a".repeat(20_000);
        assert!(!holds("(a*)*b", &value));
        assert!(!holds("(a|aa)+b", &value));
    }
}
