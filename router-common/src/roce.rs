//! Detects retransmitted RoCEv2 packets: they have the sequence number of the original.
//!
//! Each end of a queue pair numbers its requests, and responses to READs have the numbers of their
//! requests (IBTA 9.2.7, 9.4.4), so the packets to one queue pair have two number sequences. A number
//! counts when it arrives first, in order or late. So it does not matter whether a packet was lost
//! before or after it was counted.

/// Sequence numbers have 24 bits.
const NUMBERS: u32 = (1 << 24) - 1;
const HALF: u32 = 1 << 23;
const WORDS: usize = 16;
/// Number of sequence numbers below the highest that are remembered one by one.
pub const REMEMBERED: u32 = (WORDS as u32 - 1) * 64;
/// A number that is farther back than this belongs to a new queue pair with the same number.
pub const REPEATS: u32 = 1 << 16;
/// Binary logarithms of the possible packet sizes of a message: 256 to 4,096 bytes.
const SIZES: core::ops::RangeInclusive<u32> = 8..=12;

/// The distance from `from` to `to`, modulo 2^24.
#[inline(always)]
fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from) & NUMBERS
}

/// The sequence numbers that have arrived.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SequenceWindow {
    highest: u32,
    has_begun: u32,
    /// A bit for each number that arrived, modulo 1,024.
    seen: [u64; WORDS],
}

impl SequenceWindow {
    /// No number has arrived.
    pub const NEW: SequenceWindow = SequenceWindow { highest: 0, has_begun: 0, seen: [0; WORDS] };

    /// Enters the number of a packet; returns whether it arrives for the first time.
    ///
    /// A number that is farther back than is remembered counts as a retransmit.
    ///
    /// ```
    /// let mut window = router_common::roce::SequenceWindow::NEW;
    /// // 8 is lost; then everything from there on is sent again.
    /// let first = [7, 9, 10, 8, 9, 10, 11].map(|number| window.admits(number));
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
            self.seen = [0; WORDS];
        } else if ahead < HALF {
            self.clear_between(self.highest >> 6, distance_of_words(self.highest, number));
            self.highest = number;
        } else if behind > REMEMBERED {
            return false;
        }
        let bit = 1 << (number & 63);
        let word = &mut self.seen[(number >> 6) as usize & (WORDS - 1)];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Clears `count` words after `word`.
    #[inline(always)]
    fn clear_between(&mut self, word: u32, count: u32) {
        for next in 1..=WORDS as u32 {
            if next > count {
                break;
            }
            self.seen[(word.wrapping_add(next)) as usize & (WORDS - 1)] = 0;
        }
    }
}

/// Number of words from that of `from` to that of `to`.
#[inline(always)]
fn distance_of_words(from: u32, to: u32) -> u32 {
    ((to >> 6).wrapping_sub(from >> 6)) & (NUMBERS >> 6)
}

/// A READ request. If a response is lost, the requester asks for the rest alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ReadRequest {
    pub address: u64,
    pub number: u32,
    pub length: u32,
}

impl ReadRequest {
    pub const NONE: ReadRequest = ReadRequest { address: 0, number: 0, length: 0 };

    /// Whether `later` asks for the rest of this request: up to the same end, from the packet that its
    /// number stands for.
    #[inline(always)]
    pub fn is_resumed_by(&self, later: &ReadRequest) -> bool {
        let done = later.address.wrapping_sub(self.address);
        let packets = u64::from(distance(self.number, later.number));
        let mut fits = false;
        for size in SIZES {
            fits |= packets << size == done;
        }
        fits && later.length < self.length && done == u64::from(self.length - later.length)
    }
}

/// The sequence numbers of one queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sequences {
    pub requests: SequenceWindow,
    /// Responses to the READs of the queue pair itself.
    pub answers: SequenceWindow,
    /// The last READ that counted.
    pub read: ReadRequest,
}

impl Sequences {
    pub const NEW: Sequences = Sequences {
        requests: SequenceWindow::NEW,
        answers: SequenceWindow::NEW,
        read: ReadRequest::NONE,
    };

    /// Whether a READ request counts: its number is the highest so far, and it does not ask for the rest
    /// of the last one.
    ///
    /// A request with a lower number may be a late one, or may ask for the rest of an earlier READ. It
    /// is taken for the latter.
    #[inline(always)]
    pub fn admits_read(&mut self, read: &ReadRequest) -> bool {
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
    assert!(size_of::<SequenceWindow>() == 8 + 8 * WORDS);
    assert!(size_of::<ReadRequest>() == 16);
    assert!(size_of::<Sequences>() == 2 * size_of::<SequenceWindow>() + size_of::<ReadRequest>());
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_in_order_are_new_once_even_across_the_wrap() {
        let mut window = SequenceWindow::NEW;
        for number in NUMBERS - 3_000..NUMBERS + 3_000 {
            assert!(window.admits(number), "{number}");
            assert!(!window.admits(number), "{number} again");
        }
    }

    #[test]
    fn a_jump_ahead_is_new_and_clears_the_skipped_numbers() {
        let mut window = SequenceWindow::NEW;
        assert!(window.admits(5));
        for jump in [1, 63, 64, 65, 960, 1_023, 1_024, 70_000, HALF - 1] {
            let (before, number) = (window.highest, window.highest + jump);
            assert!(window.admits(number), "by {jump}");
            assert!(!window.admits(number), "by {jump}, again");
            // Skipped numbers may arrive late.
            if (2..=REMEMBERED).contains(&jump) {
                assert!(window.admits(before + 1), "by {jump}, overtaken");
                assert!(!window.admits(before), "by {jump}, before");
            }
        }
    }

    #[test]
    fn a_number_far_back_is_a_retransmit_and_one_farther_back_a_new_queue_pair() {
        let mut window = SequenceWindow::NEW;
        (100_000..102_000).for_each(|number| assert!(window.admits(number)));
        assert!(!window.admits(101_999 - REMEMBERED - 1));
        assert!(!window.admits(101_999 - REPEATS));
        assert!(window.admits(101_999 - REPEATS - 1), "a new queue pair");
        assert!(window.admits(101_999), "which has no numbers yet");
    }

    #[test]
    fn a_repeated_read_counts_once_whether_whole_or_in_part() {
        let read = |number, address, length| ReadRequest { address, number, length };
        let mut sequences = Sequences::NEW;
        let first = read(100, 0x7000, 65_536);
        assert!(sequences.admits_read(&first));
        assert!(!sequences.admits_read(&first));
        // The responses up to 110 arrived, in packets of 1,024 bytes.
        let rest = read(110, 0x7000 + 10 * 1_024, 65_536 - 10 * 1_024);
        assert!(!sequences.admits_read(&rest));
        assert!(!sequences.admits_read(&read(120, 0x7000 + 20 * 1_024, 65_536 - 20 * 1_024)));
        // The next one, of the same memory, and one of the last part of it.
        let second = read(164, 0x7000, 65_536);
        assert!(sequences.admits_read(&second));
        assert!(sequences.admits_read(&read(228, 0x7000 + 60_000, 5_536)));
        // Both again after the rest of the first: everything from there on is sent again.
        assert!(!sequences.admits_read(&rest) && !sequences.admits_read(&second));
        assert!(sequences.admits_read(&read(260, 0x7000, 64)));
        // A lower number that never arrived: it may be the rest of an earlier READ.
        assert!(!sequences.admits_read(&read(250, 0x9000, 64)));
    }

    proptest! {
        /// If a sender goes back to a lost packet, each number counts once, whether packets were lost before
        /// or after they were counted.
        #[test]
        fn going_back_counts_each_number_once(
            start in 0u32..1 << 24,
            losses in prop::collection::vec((any::<bool>(), any::<bool>()), 0..600),
            flight in 1u32..128,
        ) {
            let (mut window, mut losses) = (SequenceWindow::NEW, losses.into_iter());
            let (mut counted, mut expected) = (Vec::new(), 0u32);
            while expected < 500 {
                let mut arrived = expected;
                for number in expected..(expected + flight).min(500) {
                    let (before, behind) = losses.next().unwrap_or_default();
                    let is_seen = !before;
                    if is_seen && window.admits(start + number) {
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
