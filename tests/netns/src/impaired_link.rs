//! A link whose speed, delay and loss a test sets while it runs, made of two TAP devices and threads
//! between them. It needs no netem.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::Namespace;
use crate::tap::tap;

/// Maximum number of frames under way in one direction. Further ones are lost.
const MAX_FRAMES: usize = 4096;

/// What the link does to frames now. Zero is no impairment.
#[derive(Debug, Default)]
pub struct Impairment {
    bytes_per_second: AtomicU64,
    /// Only frames from or to this IPv4 address are delayed or lost.
    peer: AtomicU32,
    delay_ms: AtomicU64,
    lost_per_mille: AtomicU64,
}

impl Impairment {
    /// Limits the speed of the link, each way.
    pub fn limit(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Delays frames between the pod and `peer`, and loses some.
    pub fn between(&self, peer: Ipv4Addr, delay: Duration, lost_per_mille: u64) {
        self.peer.store(peer.to_bits(), Ordering::Relaxed);
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
        self.lost_per_mille.store(lost_per_mille, Ordering::Relaxed);
    }

    /// Ends delay and loss. A limit of speed stays.
    pub fn end(&self) {
        self.between(Ipv4Addr::UNSPECIFIED, Duration::ZERO, 0);
    }

    fn concerns(&self, frame: &[u8]) -> bool {
        let peer = self.peer.load(Ordering::Relaxed);
        // An IPv4 frame's addresses follow 14 bytes of Ethernet and 12 of IP.
        let at = |offset: usize| frame.get(offset..offset + 4).and_then(|a| a.try_into().ok());
        let is = |offset| at(offset).map(u32::from_be_bytes) == Some(peer);
        peer != 0 && frame.get(12..14) == Some(&[8, 0]) && (is(26) || is(30))
    }
}

/// Connects two namespaces by interfaces of these names, and passes frames until the process ends.
///
/// # Panics
/// A TAP device cannot be made.
#[must_use]
pub fn connect(one: (&Namespace, &str), other: (&Namespace, &str)) -> Arc<Impairment> {
    let impairment = Arc::new(Impairment::default());
    let (a, b) = (tap(one.0, one.1), tap(other.0, other.1));
    let (a2, b2) = (a.try_clone().expect("a handle"), b.try_clone().expect("a handle"));
    for (from, to, seed) in [(a, b, 7), (b2, a2, 11)] {
        let impairment = Arc::clone(&impairment);
        let (queue, queued) = sync_channel(MAX_FRAMES);
        std::thread::spawn(move || deliver(queued, to));
        std::thread::spawn(move || pass(from, &queue, &impairment, seed));
    }
    impairment
}

/// Reads frames no faster than the link's speed, and queues each with the time when it is due.
fn pass(
    mut from: File,
    queue: &SyncSender<(Instant, Vec<u8>)>,
    impairment: &Impairment,
    seed: u64,
) {
    let mut random: u64 = seed;
    let mut frame = vec![0; 65_536];
    let mut free = Instant::now();
    while let Ok(length) = from.read(&mut frame) {
        let now = Instant::now();
        let rate = impairment.bytes_per_second.load(Ordering::Relaxed);
        if rate > 0 {
            // Reading no faster than it sends makes the sender's queue the link's.
            free = free.max(now) + Duration::from_secs_f64(length as f64 / rate as f64);
            if free > now + Duration::from_millis(2) {
                std::thread::sleep(free - now);
            }
        }
        let mut due = now;
        if impairment.concerns(&frame[..length]) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if (random >> 33) % 1_000 < impairment.lost_per_mille.load(Ordering::Relaxed) {
                continue;
            }
            due += Duration::from_millis(impairment.delay_ms.load(Ordering::Relaxed));
        }
        // A frame that the queue cannot take is lost.
        let _ = queue.try_send((due, frame[..length].to_vec()));
    }
}

/// Sends each frame when it is due. A delayed one does not hold up the others.
fn deliver(queued: Receiver<(Instant, Vec<u8>)>, mut to: File) {
    let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    // Writing fails while the device is down: the frame is lost, as on an unplugged cable.
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
