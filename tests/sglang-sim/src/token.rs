//! A toy tokenizer: pieces of at most four bytes, whose ids are those bytes, so that counts are
//! stable and every id reads back as text.

/// Ids from here on are words of the generator's vocabulary; no UTF-8 sequence starts so.
pub(crate) const WORDS: u32 = 0xF800_0000;

/// Splits a text into pieces; a space belongs to the word that it precedes.
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

/// The bytes of one id, which need not be a whole character.
pub(crate) fn bytes(id: u32, into: &mut Vec<u8>) {
    if id >= WORDS {
        into.extend_from_slice(crate::words::word((id - WORDS) as usize).as_bytes());
        return;
    }
    let start = (id.leading_zeros() / 8).min(3) as usize;
    into.extend_from_slice(&id.to_be_bytes()[start..]);
}

/// The text of ids; bytes that are no UTF-8 become U+FFFD.
#[must_use]
pub fn decode(ids: &[u32]) -> String {
    let mut raw = Vec::with_capacity(ids.len() * 4);
    for id in ids {
        bytes(*id, &mut raw);
    }
    String::from_utf8_lossy(&raw).into_owned()
}

/// Turns ids into text as they come, holding back the bytes of an unfinished character.
#[derive(Debug, Default)]
pub(crate) struct Detokenizer {
    tail: Vec<u8>,
}

impl Detokenizer {
    /// The text that became whole with this id; empty while a character is unfinished.
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
