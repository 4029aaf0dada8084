//! One pass over a JSON text: the whole grammar of RFC 8259, no recursion, no allocation.

use super::plain::plain;
use super::{MAX_DEPTH, MemberSpan};

/// Why a text is not JSON, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyntaxError {
    /// The text ends inside a value.
    Eof,
    /// A byte that the grammar does not allow here.
    Unexpected(usize),
    /// Deeper than [`MAX_DEPTH`].
    Depth(usize),
    /// Not UTF-8.
    Utf8(usize),
    /// Starts with a byte order mark, which RFC 8259 section 8.1 lets a parser refuse.
    ByteOrderMark,
    /// A value, but not an object.
    NotObject,
    /// The visitor refused; what it wants to say, it keeps.
    Refused,
}

/// Checks that `text` is one JSON object and shows its members to `visit`, in order, as they are
/// passed; `false` ends the scan. A member is shown before the text after it has been checked.
///
/// Returns the offset at which another member could be inserted: after the last member, or after
/// the opening brace.
pub(crate) fn scan(
    text: &[u8],
    mut visit: impl FnMut(MemberSpan) -> bool,
) -> Result<usize, SyntaxError> {
    let mut cursor = Cursor::open(text)?;
    if cursor.peek()? != b'{' {
        cursor.value()?;
        cursor.end()?;
        return Err(SyntaxError::NotObject);
    }
    cursor.at += 1;
    let mut tail = cursor.at;
    cursor.white();
    if cursor.peek()? == b'}' {
        cursor.at += 1;
        return cursor.end().map(|()| tail);
    }
    loop {
        cursor.white();
        let key = cursor.at;
        cursor.key()?;
        let key = key..cursor.at;
        cursor.colon()?;
        let start = cursor.at;
        let children = cursor.value()?;
        tail = cursor.at;
        if !visit(MemberSpan { key, value: start..tail, children }) {
            return Err(SyntaxError::Refused);
        }
        cursor.white();
        match cursor.next()? {
            b',' => {}
            b'}' => return cursor.end().map(|()| tail),
            _ => return Err(SyntaxError::Unexpected(cursor.at - 1)),
        }
    }
}

/// Checks that `text` is one JSON value of any kind.
pub(crate) fn check(text: &[u8]) -> Result<(), SyntaxError> {
    let mut cursor = Cursor::open(text)?;
    cursor.value()?;
    cursor.end()
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the first byte of the value; the text is known to be UTF-8 from here on.
    fn open(text: &'a [u8]) -> Result<Self, SyntaxError> {
        if text.starts_with(b"\xEF\xBB\xBF") {
            return Err(SyntaxError::ByteOrderMark);
        }
        std::str::from_utf8(text).map_err(|e| SyntaxError::Utf8(e.valid_up_to()))?;
        let mut cursor = Cursor { text, at: 0 };
        cursor.white();
        Ok(cursor)
    }

    fn end(&mut self) -> Result<(), SyntaxError> {
        self.white();
        if self.at == self.text.len() { Ok(()) } else { Err(SyntaxError::Unexpected(self.at)) }
    }

    fn peek(&self) -> Result<u8, SyntaxError> {
        self.text.get(self.at).copied().ok_or(SyntaxError::Eof)
    }

    fn next(&mut self) -> Result<u8, SyntaxError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn white(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn key(&mut self) -> Result<(), SyntaxError> {
        match self.next()? {
            b'"' => self.string(),
            _ => Err(SyntaxError::Unexpected(self.at - 1)),
        }
    }

    fn colon(&mut self) -> Result<(), SyntaxError> {
        self.white();
        match self.next()? {
            b':' => self.white(),
            _ => return Err(SyntaxError::Unexpected(self.at - 1)),
        }
        Ok(())
    }

    /// Passes one value and says how many children it has at its own level.
    fn value(&mut self) -> Result<usize, SyntaxError> {
        let mut open = Open::default();
        let mut children = 0;
        loop {
            match self.next()? {
                b'{' => {
                    open.push(true, self.at - 1)?;
                    self.white();
                    if self.peek()? != b'}' {
                        children += usize::from(open.depth == 1);
                        self.key()?;
                        self.colon()?;
                        continue;
                    }
                }
                b'[' => {
                    open.push(false, self.at - 1)?;
                    self.white();
                    if self.peek()? != b']' {
                        children += usize::from(open.depth == 1);
                        continue;
                    }
                }
                b'"' => self.string()?,
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                _ => return Err(SyntaxError::Unexpected(self.at - 1)),
            }
            if !self.after(&mut open, &mut children)? {
                return Ok(children);
            }
        }
    }

    /// After a value, or before the end of an empty container: closes what closes and passes the
    /// comma (and the key) before the next value. `false` when the outermost value is complete.
    fn after(&mut self, open: &mut Open, children: &mut usize) -> Result<bool, SyntaxError> {
        while open.depth > 0 {
            self.white();
            let object = open.object();
            match self.next()? {
                b',' => {
                    *children += usize::from(open.depth == 1);
                    self.white();
                    if object {
                        self.key()?;
                        self.colon()?;
                    }
                    return Ok(true);
                }
                b'}' if object => open.depth -= 1,
                b']' if !object => open.depth -= 1,
                _ => return Err(SyntaxError::Unexpected(self.at - 1)),
            }
        }
        Ok(false)
    }

    /// After the opening quote. Escapes are checked for their form; a lone surrogate is well formed.
    fn string(&mut self) -> Result<(), SyntaxError> {
        loop {
            self.at += plain(&self.text[self.at..]);
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        for _ in 0..4 {
                            if !self.next()?.is_ascii_hexdigit() {
                                return Err(SyntaxError::Unexpected(self.at - 1));
                            }
                        }
                    }
                    _ => return Err(SyntaxError::Unexpected(self.at - 1)),
                },
                _ => return Err(SyntaxError::Unexpected(self.at - 1)),
            }
        }
    }

    /// After the first byte of a number.
    fn number(&mut self) -> Result<(), SyntaxError> {
        let mut first = self.text[self.at - 1];
        if first == b'-' {
            first = self.next()?;
            if !first.is_ascii_digit() {
                return Err(SyntaxError::Unexpected(self.at - 1));
            }
        }
        if first != b'0' {
            self.digits();
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), SyntaxError> {
        match self.next()?.is_ascii_digit() {
            true => self.digits(),
            false => return Err(SyntaxError::Unexpected(self.at - 1)),
        }
        Ok(())
    }

    fn word(&mut self, rest: &[u8]) -> Result<(), SyntaxError> {
        for &want in rest {
            if self.next()? != want {
                return Err(SyntaxError::Unexpected(self.at - 1));
            }
        }
        Ok(())
    }
}

/// The containers that are open: their number and, as a bit each, whether they are objects.
#[derive(Default)]
struct Open {
    depth: usize,
    objects: [u64; MAX_DEPTH / 64],
}

impl Open {
    /// The top-level object is not in here, so one level less fits.
    fn push(&mut self, object: bool, at: usize) -> Result<(), SyntaxError> {
        if self.depth + 1 >= MAX_DEPTH {
            return Err(SyntaxError::Depth(at));
        }
        let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
        if object {
            self.objects[word] |= bit;
        } else {
            self.objects[word] &= !bit;
        }
        self.depth += 1;
        Ok(())
    }

    /// Whether the innermost is an object; only asked when one is open.
    fn object(&self) -> bool {
        let top = self.depth - 1;
        self.objects[top / 64] >> (top % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdict(text: &[u8]) -> bool {
        check(text).is_ok()
    }

    #[test]
    fn the_grammar_of_rfc_8259_and_nothing_else() {
        for good in [
            "0",
            "-0",
            "1.50e+400",
            "1E5",
            "\"\"",
            "\"\\ud800\"",
            "[]",
            "[[],{}]",
            "{\"a\":[1,{}]}",
            " [1 , 2\t]\r\n",
            "true",
            "null",
            "123456789012345678901234567890",
        ] {
            assert!(verdict(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            " ",
            "01",
            "+1",
            ".5",
            "1.",
            "1e",
            "-",
            "NaN",
            "Infinity",
            "-Infinity",
            "tru",
            "nul",
            "[1,]",
            "[,]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "[1}",
            "{\"a\":1]",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"",
            "1 2",
            "[1] x",
            "'a'",
            "\u{feff}{}",
            "0x1",
        ] {
            assert!(!verdict(bad.as_bytes()), "{bad}");
        }
        assert!(!verdict(b"\"\xff\""));
        assert!(!verdict(b"\"\xed\xa0\x80\""));
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        let nested = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert_eq!(check(&nested(MAX_DEPTH - 1)), Ok(()));
        assert!(matches!(check(&nested(MAX_DEPTH)), Err(SyntaxError::Depth(_))));
        assert!(matches!(check(&vec![b'['; 1 << 20]), Err(SyntaxError::Depth(_))));
        let mixed = "{\"a\":[".repeat(100) + "1" + &"]}".repeat(100);
        assert_eq!(check(mixed.as_bytes()), Ok(()));
    }

    #[test]
    fn children_are_counted_at_the_value_s_own_level() {
        let mut seen = Vec::new();
        let text = br#"{"a":[],"b":[1,[2,3],"x,y"],"c":{"k":[1,2],"l":0},"d":"q"}"#;
        scan(text, |m: MemberSpan| {
            seen.push(m.children);
            true
        })
        .unwrap();
        assert_eq!(seen, [0, 3, 2, 0]);
    }

    proptest! {
        /// serde_json is the second opinion; the two differ on lone surrogates and depth only,
        /// and neither alphabet below can write those.
        #[test]
        fn agrees_with_serde_json(text in r#"[\[\]{}:,"ab0-9.eE+\- \\nturlfs]{0,24}"#) {
            let second = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(check(text.as_bytes()).is_ok(), second, "{}", text);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(&bytes, |_: MemberSpan| true);
        }
    }
}
