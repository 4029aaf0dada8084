//! Checks a JSON text in one pass: the complete grammar of RFC 8259, no recursion, no allocation.

use super::plain::plain;
use super::{MAX_DEPTH, MemberSpan, ValueShape};

/// Why a text is not valid JSON, with the byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyntaxError {
    /// The text ends inside a value.
    Eof,
    /// The grammar does not allow this byte here.
    Unexpected(usize),
    /// Deeper than [`MAX_DEPTH`].
    Depth(usize),
    /// Not UTF-8.
    Utf8(usize),
    /// Starts with a byte order mark, which RFC 8259 section 8.1 lets a parser refuse.
    ByteOrderMark,
    /// A value that is not an object.
    NotObject,
    /// The visitor stopped the scan; it keeps the reason.
    Refused,
}

/// Checks that `text` is one JSON object and passes its members to `visit`, in order. `visit`
/// returns
/// `false` to stop the scan. It is called before the text after the member has been checked.
///
/// Returns the offset at which another member can be inserted: after the last member, or after the
/// opening brace.
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
        let shape = cursor.value()?;
        tail = cursor.at;
        if !visit(MemberSpan { key, value: start..tail, shape }) {
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
    /// Starts at the first byte of the value. Checks that the text is UTF-8.
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

    /// Consumes one value.
    fn value(&mut self) -> Result<ValueShape, SyntaxError> {
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
                return Ok(ValueShape { children, depth: open.deepest });
            }
        }
    }

    /// After a value or at the end of an empty container: closes containers and consumes the comma
    /// (and the key) before the next value. Returns `false` when the outermost value is complete.
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

    /// Consumes a string after its opening quote. Checks the form of escapes; a lone surrogate is
    /// valid.
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

    /// Consumes a number after its first byte.
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

/// The open containers: their number, and one bit for each that says whether it is an object.
#[derive(Default)]
struct Open {
    depth: usize,
    /// The maximum of `depth` so far.
    deepest: usize,
    objects: [u64; MAX_DEPTH / 64],
}

impl Open {
    /// The top-level object is not counted here, so one level less fits.
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
        self.deepest = self.deepest.max(self.depth);
        Ok(())
    }

    /// Whether the innermost container is an object. Requires an open container.
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
    fn exactly_the_grammar_of_rfc_8259_is_accepted() {
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
    fn direct_children_and_the_depth_are_counted() {
        let mut seen = Vec::new();
        let text = br#"{"a":[],"b":[1,[2,3],"x,y"],"c":{"k":[1,2],"l":0},"d":"q"}"#;
        scan(text, |m: MemberSpan| {
            seen.push((m.shape.children, m.shape.depth));
            true
        })
        .unwrap();
        assert_eq!(seen, [(0, 1), (3, 2), (2, 2), (0, 0)]);
    }

    proptest! {
        /// Compares with serde_json. The two differ only on lone surrogates and on depth, which
        /// this alphabet cannot produce.
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
