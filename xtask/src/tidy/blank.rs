//! Rust text with comments and literals blanked out, so that what is left is code.

/// Replaces each character of a comment, a string or a character literal by a space. Lines and
/// columns stay as they are, and so do a literal's quotes.
pub(super) fn blank(text: &str) -> String {
    let mut blanker = Blanker { rest: text, out: String::with_capacity(text.len()) };
    while !blanker.rest.is_empty() {
        blanker.step();
    }
    blanker.out
}

struct Blanker<'a> {
    rest: &'a str,
    out: String,
}

impl Blanker<'_> {
    fn step(&mut self) {
        if self.rest.starts_with("//") {
            self.hide(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.hide(block_comment(self.rest));
        } else if let Some(hashes) = raw_string(self.rest) {
            let open = self.rest.find('"').expect("a raw string has a quote") + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            let body = self.rest[open..].find(&end).unwrap_or(self.rest.len() - open);
            self.keep(open);
            self.hide(body);
            self.keep(end.len());
        } else if self.rest.starts_with('"') {
            self.keep(1);
            self.hide(quoted(self.rest, '"'));
            self.keep(1);
        } else if let Some(body) = character(self.rest) {
            self.keep(1);
            self.hide(body);
            self.keep(1);
        } else {
            self.word();
        }
    }

    /// Keeps one word or one other character; a word whole, so that the `r` of `for` opens no
    /// raw string.
    fn word(&mut self) {
        let word = self.rest.find(|c: char| !is_word(c)).unwrap_or(self.rest.len());
        self.keep(if word > 0 { word } else { self.rest.chars().next().map_or(1, char::len_utf8) });
    }

    fn keep(&mut self, length: usize) {
        let (kept, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.out.push_str(kept);
        self.rest = rest;
    }

    fn hide(&mut self, length: usize) {
        let (hidden, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.out.extend(hidden.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the block comment at the start; such comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// How many `#` the raw string at the start has, if one is there.
fn raw_string(text: &str) -> Option<usize> {
    let after = ["r", "br", "cr"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Length up to the closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at,
            _ => {}
        }
    }
    text.len()
}

/// Length of what a character literal at the start holds; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        return Some(quoted(body, '\''));
    }
    body[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_spaces() {
        assert_eq!(blank("a // b {\nc"), "a       \nc");
        assert_eq!(blank("a /* b /* c */ d */ e"), "a                   e");
        assert_eq!(blank(r#"f("x\"}", 'y', '\'', b'}')"#), r#"f("    ", ' ', '  ', b' ')"#);
        assert_eq!(blank("r#\"a\"b}\"# c"), "r#\"    \"# c");
    }

    #[test]
    fn lifetimes_and_words_that_end_in_r_stay() {
        for code in ["fn f<'a>(x: &'a str) {}", "for\"\"", "'static", "br + r"] {
            assert_eq!(blank(code), code);
        }
    }

    #[test]
    fn unterminated_literals_do_not_panic() {
        for text in ["\"", "'", "'\\", "r#\"a", "/* é", "\"é\\", "é"] {
            assert_eq!(blank(text).lines().count(), text.lines().count(), "{text}");
        }
    }
}
