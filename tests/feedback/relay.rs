//! A pod's link whose speed, delay and loss the test sets while it runs: two TAP devices and the
//! threads between them. This kernel has no netem.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::space::Space;
use crate::wire::tap;

/// Frames on their way in one direction; what finds no room is lost, as on any wire.
const ON_THE_WAY: usize = 4096;

/// What the link does now. Zero is nothing.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    bytes_per_second: AtomicU64,
    /// Of frames from or to this address alone.
    peer: AtomicU32,
    delay_ms: AtomicU64,
    lost_per_mille: AtomicU64,
}

impl Trouble {
    pub(crate) fn limit(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Frames between the pod and `peer` come late, or never.
    pub(crate) fn between(&self, peer: Ipv4Addr, delay: Duration, lost_per_mille: u64) {
        self.peer.store(peer.to_bits(), Ordering::Relaxed);
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
        self.lost_per_mille.store(lost_per_mille, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.between(Ipv4Addr::UNSPECIFIED, Duration::ZERO, 0);
    }

    fn concerns(&self, frame: &[u8]) -> bool {
        let peer = self.peer.load(Ordering::Relaxed);
        // An IPv4 frame's addresses follow 14 bytes of Ethernet and 12 of IP.
        let at = |place: usize| frame.get(place..place + 4).and_then(|a| a.try_into().ok());
        let is = |place| at(place).map(u32::from_be_bytes) == Some(peer);
        peer != 0 && frame.get(12..14) == Some(&[8, 0]) && (is(26) || is(30))
    }
}

/// Makes interfaces of these names at both ends, and passes frames until the test ends.
pub(crate) fn lay(one: (&Space, &str), other: (&Space, &str)) -> Arc<Trouble> {
    let trouble = Arc::new(Trouble::default());
    let (a, b) = (tap(one.0, one.1), tap(other.0, other.1));
    let (a2, b2) = (a.try_clone().expect("a handle"), b.try_clone().expect("a handle"));
    for (from, to, seed) in [(a, b, 7), (b2, a2, 11)] {
        let trouble = Arc::clone(&trouble);
        let (queue, queued) = sync_channel(ON_THE_WAY);
        std::thread::spawn(move || deliver(queued, to));
        std::thread::spawn(move || pass(from, &queue, &trouble, seed));
    }
    trouble
}

/// Reads frames, holds them to the link's speed, and says when each is due.
fn pass(mut from: File, queue: &SyncSender<(Instant, Vec<u8>)>, trouble: &Trouble, seed: u64) {
    let mut chance: u64 = seed;
    let mut frame = vec![0; 65_536];
    let mut free = Instant::now();
    while let Ok(length) = from.read(&mut frame) {
        let now = Instant::now();
        let rate = trouble.bytes_per_second.load(Ordering::Relaxed);
        if rate > 0 {
            // Reading no faster than it sends makes the sender's queue the link's.
            free = free.max(now) + Duration::from_secs_f64(length as f64 / rate as f64);
            if free > now + Duration::from_millis(2) {
                std::thread::sleep(free - now);
            }
        }
        let mut due = now;
        if trouble.concerns(&frame[..length]) {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if (chance >> 33) % 1_000 < trouble.lost_per_mille.load(Ordering::Relaxed) {
                continue;
            }
            due += Duration::from_millis(trouble.delay_ms.load(Ordering::Relaxed));
        }
        // Full: lost.
        let _ = queue.try_send((due, frame[..length].to_vec()));
    }
}

/// Sends each frame when it is due; one that is late does not hold up the others.
fn deliver(queued: Receiver<(Instant, Vec<u8>)>, mut to: File) {
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    // A device that is not up takes nothing, as a wire that is not plugged in.
    let mut send = |frame: &[u8]| _ = to.write_all(frame);
    loop {
        let wait = late.front().map_or(Duration::from_secs(1), |(due, _)| {
            due.saturating_duration_since(Instant::now())
        });
        match queued.recv_timeout(wait) {
            Ok((due, frame)) if due > Instant::now() => late.push_back((due, frame)),
            Ok((_, frame)) => send(&frame),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while late.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            late.pop_front().iter().for_each(|(_, frame)| send(frame));
        }
    }
}
