//! Finds the end of the plain part of a string, which is nearly all of a long body.

/// The number of leading bytes without a quote, a backslash or a control character.
///
/// The first bytes are tested eight at a time, because many strings and runs between escapes are
/// short. Long runs are tested in blocks, with a fold that the compiler vectorises.
pub(super) fn plain(text: &[u8]) -> usize {
    const SHORT: usize = 32;
    const BLOCK: usize = 64;
    let mut at = 0;
    while at < SHORT {
        let Some(word) = text[at..].first_chunk() else {
            return at + plain_bytes(&text[at..]);
        };
        match first_special(*word) {
            Some(within) => return at + within,
            None => at += 8,
        }
    }
    let clear = text[at..].chunks_exact(BLOCK).take_while(|block| {
        let hit = |b: u8| (b == b'"') | (b == b'\\') | (b < 0x20);
        !block.iter().fold(false, |any, &b| any | hit(b))
    });
    at += clear.count() * BLOCK;
    while let Some(word) = text[at..].first_chunk() {
        match first_special(*word) {
            Some(within) => return at + within,
            None => at += 8,
        }
    }
    at + plain_bytes(&text[at..])
}

fn plain_bytes(text: &[u8]) -> usize {
    let special = |&b: &u8| b == b'"' || b == b'\\' || b < 0x20;
    text.iter().position(special).unwrap_or(text.len())
}

/// The first special byte of eight. The subtractions set the high bit of each special byte. The
/// lowest set bit is exact: a borrow only affects the bytes above it.
fn first_special(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let word = u64::from_le_bytes(word);
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let quote = below(word ^ (ONES * u64::from(b'"')), 1);
    let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
    let marks = (quote | backslash | below(word, 0x20)) & (ONES * 0x80);
    (marks != 0).then(|| (marks.trailing_zeros() / 8) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn plain_stops_at_the_first_special_byte(
            clear in proptest::collection::vec(0x80u8.., 0..150),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = [clear, bytes].concat();
            let want = bytes.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(bytes.len());
            prop_assert_eq!(plain(&bytes), want);
        }
    }
}
