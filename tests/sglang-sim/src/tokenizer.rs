//! A toy tokenizer. A token is a piece of at most four bytes and its id is those bytes, so counts
//! are stable and every id can be decoded.

/// Ids from here on are words of the model's vocabulary. No UTF-8 sequence starts with these bytes.
pub(crate) const FIRST_WORD_ID: u32 = 0xF800_0000;

/// Splits a text into pieces. A space belongs to the word after it.
#[must_use]
pub fn encode(text: &str) -> Vec<u32> {
    let mut ids = Vec::with_capacity(text.len() / 3 + 1);
    let mut piece = 0u32;
    let mut length = 0usize;
    let mut utf8 = [0u8; 4];
    for character in text.chars() {
        let bytes = character.encode_utf8(&mut utf8).as_bytes();
        if length > 0 && (character.is_whitespace() || length + bytes.len() > 4) {
            ids.push(piece);
            (piece, length) = (0, 0);
        }
        for byte in bytes {
            piece = piece << 8 | u32::from(*byte);
        }
        length += bytes.len();
    }
    if length > 0 {
        ids.push(piece);
    }
    ids
}

/// The bytes of one id, possibly part of a character.
pub(crate) fn bytes(id: u32, into: &mut Vec<u8>) {
    if id >= FIRST_WORD_ID {
        into.extend_from_slice(crate::model::word((id - FIRST_WORD_ID) as usize).as_bytes());
        return;
    }
    let start = (id.leading_zeros() / 8).min(3) as usize;
    into.extend_from_slice(&id.to_be_bytes()[start..]);
}

/// The text of token ids. Invalid UTF-8 becomes U+FFFD.
#[must_use]
pub fn decode(ids: &[u32]) -> String {
    let mut raw = Vec::with_capacity(ids.len() * 4);
    for id in ids {
        bytes(*id, &mut raw);
    }
    String::from_utf8_lossy(&raw).into_owned()
}

/// Decodes ids one by one and holds back the bytes of an incomplete character.
#[derive(Debug, Default)]
pub(crate) struct Detokenizer {
    tail: Vec<u8>,
}

impl Detokenizer {
    /// The text that this id completes. Empty while a character is incomplete.
    pub(crate) fn push(&mut self, id: u32) -> String {
        bytes(id, &mut self.tail);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.tail) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.tail.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.tail[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.tail.drain(..valid);
                        return text;
                    };
                    text.push('\u{FFFD}');
                    self.tail.drain(..valid + bad);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip() {
        for text in ["Hello, this is a test", "你好，世界 和 ASCII", "🙂 tail", ""] {
            assert_eq!(decode(&encode(text)), text);
        }
    }

    #[test]
    fn a_character_cut_in_two_ids_is_held_back_until_whole() {
        let smile = "🙂".as_bytes();
        let halves = [
            u32::from(smile[0]) << 8 | u32::from(smile[1]),
            u32::from(smile[2]) << 8 | u32::from(smile[3]),
        ];
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(halves[0]), "");
        assert_eq!(detokenizer.push(halves[1]), "🙂");
    }
}
