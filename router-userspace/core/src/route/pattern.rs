//! [`Pattern`]: a regular expression of a match, compiled, within limits.

use regex::bytes::{Regex, RegexBuilder};

/// Bytes that a pattern may take compiled, and again while it is being matched by a thread.
const MAX_COMPILED: usize = 256 << 10;
/// Groups within groups.
const MAX_NESTING: u32 = 64;

/// A regular expression that must match the whole value, as with RE2 in Envoy: time is linear in
/// the value, classes such as `\d` mean ASCII, there are no back references and no looking around.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    compiled: Regex,
}

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error)]
pub enum BadPattern {
    #[error("it takes more than {MAX_COMPILED} bytes when compiled")]
    TooLarge,
    /// One line: what is wrong, without the drawing of where.
    #[error("{0}")]
    Syntax(String),
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// It is no regular expression of this kind, or too large a one.
    pub fn new(text: &str) -> Result<Pattern, BadPattern> {
        // By itself first: `a)|(b` is none, though it would be one within the group below.
        compile(text)?;
        let compiled = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Pattern { text: text.into(), compiled })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether all of `value` is matched.
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
        // The alternatives together, and the longer one though the shorter comes first.
        assert!(holds("/a|/ab", "/ab"));
        assert!(!holds("/a|/b", "/ab"));
        assert!(!holds("a", "a\n"));
        // Flags, and a comment that would hide what follows it on its line.
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
    fn what_is_no_pattern_is_said_in_one_line() {
        for (pattern, words) in [
            ("/a(", "unclosed group"),
            ("a)|(b", "unopened group"),
            (r"(a)\1", "backreferences are not supported"),
            ("a(?=b)", "look-around"),
            ("(a{1000}){1000}", "more than 262144 bytes"),
        ] {
            let told = Pattern::new(pattern).unwrap_err().to_string();
            assert!(told.contains(words) && !told.contains('\n'), "{pattern}: {told}");
        }
        assert!(Pattern::new(&"(".repeat(100)).is_err());
    }

    #[test]
    fn time_is_linear_where_backtracking_would_not_end() {
        let value = "a".repeat(20_000);
        assert!(!holds("(a*)*b", &value));
        assert!(!holds("(a|aa)+b", &value));
    }
}
