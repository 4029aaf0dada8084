//! RoCEv2 that is sent again: what a queue pair repeats counts as repeated, and as nothing else.

use router_common::flow::QueuePairStats;
use router_common::roce::{REMEMBERED, REPEATS};

use crate::frames::roce;
use crate::packets::{Table, with_programs};

const SEND_ONLY: u8 = 4;
const WRITE_FIRST: u8 = 6;
const WRITE_MIDDLE: u8 = 7;
const WRITE_LAST: u8 = 8;
const READ_REQUEST: u8 = 12;
const ANSWER_FIRST: u8 = 13;
const ANSWER_MIDDLE: u8 = 14;
const ANSWER_LAST: u8 = 15;
const ACKNOWLEDGE: u8 = 17;
const SIZE: usize = 1_024;

/// A packet with its sequence number, which stands in the BTH behind Ethernet, IPv4 and UDP.
fn packet(opcode: u8, number: u32, extended: &[u8], payload: usize) -> Vec<u8> {
    let mut frame = roce(opcode, extended, payload);
    frame[51..54].copy_from_slice(&number.to_be_bytes()[1..]);
    frame
}

/// A WRITE of three packets, from this number on.
fn write(number: u32) -> [Vec<u8>; 3] {
    let reth = reth(0x7000, 3 * SIZE as u32);
    [
        packet(WRITE_FIRST, number, &reth, SIZE),
        packet(WRITE_MIDDLE, number + 1, &[], SIZE),
        packet(WRITE_LAST, number + 2, &[], SIZE),
    ]
}

fn reth(address: u64, length: u32) -> [u8; 16] {
    let mut reth = [0; 16];
    reth[..8].copy_from_slice(&address.to_be_bytes());
    reth[12..].copy_from_slice(&length.to_be_bytes());
    reth
}

fn read(number: u32, address: u64, length: u32) -> Vec<u8> {
    packet(READ_REQUEST, number, &reth(address, length), 0)
}

/// What is counted once all of them came, to a queue pair that nothing came to before.
fn counted<'p>(table: &Table, packets: impl IntoIterator<Item = &'p Vec<u8>>) -> QueuePairStats {
    table.forget_roce();
    let last = packets.into_iter().map(|packet| table.comes(packet)).last();
    last.flatten().expect("a queue pair")
}

#[test]
fn writes_that_are_sent_again_count_once_wherever_they_were_lost() {
    with_programs(|table| {
        let whole = QueuePairStats {
            payload_bytes: 6 * SIZE as u64,
            messages: 2,
            writes: 2,
            write_bytes: 6 * SIZE as u64,
            ..QueuePairStats::default()
        };
        // Across the end of the numbers, too.
        for start in [100, (1 << 24) - 3] {
            let [a, b, c] = &write(start);
            let [d, e, f] = &write((start + 3) & 0xff_ffff);
            let whole = |packets, repeated| QueuePairStats { packets, repeated, ..whole };
            assert_eq!(counted(table, [a, b, c, d, e, f]), whole(6, 0), "nothing lost");
            // Lost behind the counting: from `b` on, all of it comes again.
            assert_eq!(counted(table, [a, b, c, d, b, c, d, e, f]), whole(9, 3), "lost behind");
            // Lost before the counting: `b` was never seen, what overtook it was.
            assert_eq!(counted(table, [a, c, d, b, c, d, e, f]), whole(8, 2), "lost before");
            // The first packet with what the WRITE announces, and everything after it but one.
            assert_eq!(counted(table, [d, f, a, b, c, d, e, f]), whole(8, 2), "the first ones");
        }
    });
}

#[test]
fn answers_to_reads_have_numbers_of_their_own_and_count_once() {
    with_programs(|table| {
        let answer = |opcode, number| packet(opcode, number, &[0; 4], SIZE);
        let first = answer(ANSWER_FIRST, 500);
        let middle = packet(ANSWER_MIDDLE, 501, &[], SIZE);
        let last = answer(ANSWER_LAST, 502);
        // The requests of the other end, of the same numbers, are no repeats of these.
        let [a, b, c] = &write(500);
        let acknowledged = packet(ACKNOWLEDGE, 502, &[0; 4], 0);
        let all = [&first, a, &last, &acknowledged, b, &first, &middle, &last, c, &acknowledged];
        let expected = QueuePairStats {
            packets: 10,
            repeated: 2,
            payload_bytes: 6 * SIZE as u64,
            messages: 2,
            writes: 1,
            write_bytes: 3 * SIZE as u64,
            ..QueuePairStats::default()
        };
        assert_eq!(counted(table, all), expected);
    });
}

#[test]
fn a_read_that_is_asked_for_again_whole_or_in_part_counts_once() {
    with_programs(|table| {
        let whole = read(10, 0x7000, 65_536);
        let rest = read(30, 0x7000 + 20 * SIZE as u64, 65_536 - 20 * SIZE as u32);
        let next = read(74, 0x7000, 65_536);
        let packets = [&whole, &whole, &rest, &next, &rest, &next];
        let expected = QueuePairStats {
            packets: 6,
            repeated: 4,
            reads: 2,
            read_bytes: 2 * 65_536,
            ..QueuePairStats::default()
        };
        assert_eq!(counted(table, packets), expected);
    });
}

#[test]
fn a_queue_pair_that_restarts_far_back_is_not_a_repeat() {
    with_programs(|table| {
        let send = |number| packet(SEND_ONLY, number, &[], 64);
        let (old, near, far) = (send(200_000), 200_000 - REPEATS, 200_000 - REPEATS - 1);
        let remembered = send(200_000 - REMEMBERED);
        let packets = [&old, &remembered, &remembered, &send(near), &send(far), &old];
        let expected = QueuePairStats {
            packets: 6,
            repeated: 2,
            payload_bytes: 4 * 64,
            messages: 4,
            ..QueuePairStats::default()
        };
        assert_eq!(counted(table, packets), expected);
    });
}
