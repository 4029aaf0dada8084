//! A link that loses and reorders TCP frames, made of two TAP devices and a thread for each
//! direction. It needs no netem.

use std::fs::File;
use std::io::{Read, Write};

use crate::Namespace;
use crate::tap::tap;

/// Frames in a thousand that are lost, and frames in a thousand that come after the next two.
const LOST_PER_MILLE: u64 = 15;
const LATE_PER_MILLE: u64 = 30;

/// Connects two namespaces by interfaces of these names, and passes frames until the process ends.
///
/// # Panics
/// A TAP device cannot be made.
pub fn connect(one: (&Namespace, &str), other: (&Namespace, &str)) {
    let (a, b) = (tap(one.0, one.1), tap(other.0, other.1));
    let (a2, b2) = (a.try_clone().expect("a handle"), b.try_clone().expect("a handle"));
    std::thread::spawn(move || pass(a, b, 7));
    std::thread::spawn(move || pass(b2, a2, 11));
}

fn pass(mut from: File, mut to: File, seed: u64) {
    let mut random = seed;
    let mut late: Option<(u32, Vec<u8>)> = None;
    let mut frame = vec![0; 65_536];
    // Writing fails while the device is down: the frame is lost, as on an unplugged cable.
    let mut send = |frame: &[u8]| _ = to.write_all(frame);
    while let Ok(length) = from.read(&mut frame) {
        // ARP and neighbour discovery pass: without them no connection is made.
        let is_tcp = length > 34 && frame[12..14] == [8, 0] && frame[23] == 6;
        if !is_tcp {
            send(&frame[..length]);
            continue;
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let draw = (random >> 33) % 1_000;
        if draw < LOST_PER_MILLE {
            continue;
        }
        if draw < LOST_PER_MILLE + LATE_PER_MILLE && late.is_none() {
            late = Some((2, frame[..length].to_vec()));
            continue;
        }
        send(&frame[..length]);
        if let Some((after, held)) = &mut late {
            *after -= 1;
            if *after == 0 {
                send(held);
                late = None;
            }
        }
    }
}
