//! Which RoCEv2 packets are new: a packet that is sent again has the sequence number that it had.
//!
//! Each end of a queue pair numbers its requests, and answers to READs have the numbers of their
//! requests (IBTA 9.2.7, 9.4.4): so what comes to one queue pair has two rows of numbers. A number
//! counts when it comes first, whether that is in order or after others that overtook it; so it does
//! not matter on which side of the counting a packet was lost.

/// Sequence numbers have 24 bits.
const NUMBERS: u32 = (1 << 24) - 1;
const HALF: u32 = 1 << 23;
const WORDS: usize = 16;
/// Before the highest number, the others are remembered one by one for so many.
pub const REMEMBERED: u32 = (WORDS as u32 - 1) * 64;
/// A number that is farther back than this is of another queue pair that has the same name.
pub const REPEATS: u32 = 1 << 16;
/// The binary logarithms of the sizes that packets of a message have: 256 to 4,096 bytes.
const SIZES: core::ops::RangeInclusive<u32> = 8..=12;

/// How far `to` is behind `from`.
#[inline(always)]
fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from) & NUMBERS
}

/// One row of sequence numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    highest: u32,
    has_begun: u32,
    /// A bit for each number that came, at its place among 1,024.
    came: [u64; WORDS],
}

impl Row {
    /// Nothing came yet.
    pub const NEW: Row = Row { highest: 0, has_begun: 0, came: [0; WORDS] };

    /// Takes in a packet's number; whether it comes for the first time.
    ///
    /// What is further back than is remembered is taken for a repeat.
    ///
    /// ```
    /// let mut row = router_common::roce::Row::NEW;
    /// // 8 is lost; then everything from there on is sent again.
    /// let first = [7, 9, 10, 8, 9, 10, 11].map(|number| row.admits(number));
    /// assert_eq!(first, [true, true, true, true, false, false, true]);
    /// ```
    #[inline(always)]
    pub fn admits(&mut self, number: u32) -> bool {
        let number = number & NUMBERS;
        let ahead = distance(self.highest, number);
        let behind = distance(number, self.highest);
        if self.has_begun == 0 || (ahead >= HALF && behind > REPEATS) {
            self.has_begun = 1;
            self.highest = number;
            self.came = [0; WORDS];
        } else if ahead < HALF {
            self.clear_between(self.highest >> 6, distance_of_words(self.highest, number));
            self.highest = number;
        } else if behind > REMEMBERED {
            return false;
        }
        let bit = 1 << (number & 63);
        let word = &mut self.came[(number >> 6) as usize & (WORDS - 1)];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Forgets what stood at the places of `count` words after one.
    #[inline(always)]
    fn clear_between(&mut self, word: u32, count: u32) {
        for next in 1..=WORDS as u32 {
            if next > count {
                break;
            }
            self.came[(word.wrapping_add(next)) as usize & (WORDS - 1)] = 0;
        }
    }
}

/// Words from that of one number to that of a later one.
#[inline(always)]
fn distance_of_words(from: u32, to: u32) -> u32 {
    ((to >> 6).wrapping_sub(from >> 6)) & (NUMBERS >> 6)
}

/// A READ request, of which a lost answer makes the other end ask again for the rest alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub address: u64,
    pub number: u32,
    pub length: u32,
}

impl Read {
    pub const NONE: Read = Read { address: 0, number: 0, length: 0 };

    /// Whether `later` asks for the rest of this one: up to the same end, from the packet that its
    /// number says.
    #[inline(always)]
    pub fn is_resumed_by(&self, later: &Read) -> bool {
        let done = later.address.wrapping_sub(self.address);
        let packets = u64::from(distance(self.number, later.number));
        let mut fits = false;
        for size in SIZES {
            fits |= packets << size == done;
        }
        fits && later.length < self.length && done == u64::from(self.length - later.length)
    }
}

/// What is remembered of one queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences {
    pub requests: Row,
    /// Answers to the queue pair's own READs.
    pub answers: Row,
    /// The last READ that counted.
    pub read: Read,
}

impl Sequences {
    pub const NEW: Sequences =
        Sequences { requests: Row::NEW, answers: Row::NEW, read: Read::NONE };

    /// Whether a READ request counts: nothing that came had a higher number, and it does not ask
    /// for the rest of the last one.
    ///
    /// Others may have come before it where it was lost on its way; but one that is behind others
    /// may as well ask for the rest of a READ before them, and is taken for that.
    #[inline(always)]
    pub fn admits_read(&mut self, read: &Read) -> bool {
        let is_last = self.requests.has_begun == 0
            || distance(self.requests.highest, read.number) < HALF
            || distance(read.number, self.requests.highest) > REPEATS;
        let is_new = self.requests.admits(read.number);
        if !(is_new && is_last) || self.read.is_resumed_by(read) {
            return false;
        }
        self.read = *read;
        true
    }
}

const _: () = {
    assert!(size_of::<Row>() == 8 + 8 * WORDS);
    assert!(size_of::<Read>() == 16);
    assert!(size_of::<Sequences>() == 2 * size_of::<Row>() + size_of::<Read>());
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_in_order_are_new_across_their_wrap_and_once_each() {
        let mut row = Row::NEW;
        for number in NUMBERS - 3_000..NUMBERS + 3_000 {
            assert!(row.admits(number), "{number}");
            assert!(!row.admits(number), "{number} again");
        }
    }

    #[test]
    fn a_jump_ahead_is_new_and_forgets_what_stood_in_its_place() {
        let mut row = Row::NEW;
        assert!(row.admits(5));
        for jump in [1, 63, 64, 65, 960, 1_023, 1_024, 70_000, HALF - 1] {
            let (before, number) = (row.highest, row.highest + jump);
            assert!(row.admits(number), "by {jump}");
            assert!(!row.admits(number), "by {jump}, again");
            // What was passed over may come later.
            if (2..=REMEMBERED).contains(&jump) {
                assert!(row.admits(before + 1), "by {jump}, overtaken");
                assert!(!row.admits(before), "by {jump}, before");
            }
        }
    }

    #[test]
    fn what_is_far_back_is_a_repeat_and_farther_back_another_queue_pair() {
        let mut row = Row::NEW;
        (100_000..102_000).for_each(|number| assert!(row.admits(number)));
        assert!(!row.admits(101_999 - REMEMBERED - 1));
        assert!(!row.admits(101_999 - REPEATS));
        assert!(row.admits(101_999 - REPEATS - 1), "a new life");
        assert!(row.admits(101_999), "of which nothing came yet");
    }

    #[test]
    fn a_read_that_is_asked_for_again_counts_once_whole_or_in_part() {
        let read = |number, address, length| Read { address, number, length };
        let mut sequences = Sequences::NEW;
        let first = read(100, 0x7000, 65_536);
        assert!(sequences.admits_read(&first));
        assert!(!sequences.admits_read(&first));
        // The answers up to 110 came, in packets of 1,024 bytes.
        let rest = read(110, 0x7000 + 10 * 1_024, 65_536 - 10 * 1_024);
        assert!(!sequences.admits_read(&rest));
        assert!(!sequences.admits_read(&read(120, 0x7000 + 20 * 1_024, 65_536 - 20 * 1_024)));
        // The next one, of the same memory, and one of the last part of it.
        let second = read(164, 0x7000, 65_536);
        assert!(sequences.admits_read(&second));
        assert!(sequences.admits_read(&read(228, 0x7000 + 60_000, 5_536)));
        // Both again after the first's rest, as everything from there on is.
        assert!(!sequences.admits_read(&rest) && !sequences.admits_read(&second));
        assert!(sequences.admits_read(&read(260, 0x7000, 64)));
        // Behind others, and never seen: it may be the rest of one before.
        assert!(!sequences.admits_read(&read(250, 0x9000, 64)));
    }

    proptest! {
        /// A sender that goes back to what was lost: each number counts once, wherever packets
        /// were lost, before the counting or behind it.
        #[test]
        fn going_back_counts_each_number_once(
            start in 0u32..1 << 24,
            losses in prop::collection::vec((any::<bool>(), any::<bool>()), 0..600),
            flight in 1u32..128,
        ) {
            let (mut row, mut losses) = (Row::NEW, losses.into_iter());
            let (mut counted, mut expected) = (Vec::new(), 0u32);
            while expected < 500 {
                let mut arrived = expected;
                for number in expected..(expected + flight).min(500) {
                    let (before, behind) = losses.next().unwrap_or_default();
                    let is_seen = !before;
                    if is_seen && row.admits(start + number) {
                        counted.push(number);
                    }
                    if is_seen && !behind && number == arrived {
                        arrived += 1;
                    }
                }
                expected = arrived;
            }
            prop_assert_eq!(counted.len(), 500);
            prop_assert_eq!(counted.into_iter().collect::<BTreeSet<_>>().len(), 500);
        }
    }
}
