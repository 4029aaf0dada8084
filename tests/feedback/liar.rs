//! False agents: they answer with garbage, floods, lies, or nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::BytesMut;
use netns::Namespace;
use router_core::frame::{Body, Delta, Frame, LoadReport, PodRecord, pod_id};
use router_core::provenance::Measured;

/// What a false agent sends to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Random bytes behind a valid head.
    Garbage,
    /// Valid frames with some bytes changed at random.
    Changed,
    /// Valid frames, without a pause.
    Flood,
    /// An answer's head, and then nothing.
    Silence,
    /// A valid frame, one byte at a time.
    Slowly,
    /// Frames of real pods with a NaN.
    Nonsense,
    /// An answer that is not HTTP.
    NoHttp,
    /// A frame of a length that no agent sends.
    Endless,
}

pub(crate) const LIES: [Lie; 8] = [
    Lie::Garbage,
    Lie::Changed,
    Lie::Flood,
    Lie::Silence,
    Lie::Slowly,
    Lie::Nonsense,
    Lie::NoHttp,
    Lie::Endless,
];

/// Serves until dropped, and counts its subscribers.
pub(crate) struct Liar {
    pub(crate) address: SocketAddr,
    pub(crate) visits: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Liar {
    pub(crate) fn start(
        netns: &Namespace,
        address: SocketAddr,
        lie: Lie,
        uids: Vec<String>,
    ) -> Liar {
        let listener = netns.run(move || TcpListener::bind(address).expect("binding"));
        let address = listener.local_addr().expect("an address");
        let (visits, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&visits), Arc::clone(&stop));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                let (uids, stopped) = (uids.clone(), Arc::clone(&stopped));
                // It ends when the gateway leaves, or with the test.
                std::thread::spawn(move || _ = send(stream, lie, &uids, &stopped));
            }
        });
        Liar { address, visits, stop }
    }
}

fn send(
    mut stream: TcpStream,
    lie: Lie,
    uids: &[String],
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut asked = [0; 4096];
    let _ = stream.read(&mut asked)?;
    if lie == Lie::NoHttp {
        return stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.pd-router.loads\r\n\r\n")?;
    let mut sequence = 0;
    // Another for each visit, and for each byte.
    let mut state = 88_172_645_463_325_252 ^ u64::from(stream.peer_addr()?.port());
    let mut chance = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as usize
    };
    while !stop.load(Ordering::Relaxed) {
        sequence += 1;
        let bytes = match lie {
            Lie::Silence => {
                let _ = stream.read(&mut asked)?;
                return Ok(());
            }
            Lie::Garbage => {
                let noise: Vec<u8> = (0..508).map(|_| chance() as u8).collect();
                // Behind a valid length, so that the frame itself is parsed.
                [&508u32.to_le_bytes()[..], &noise].concat()
            }
            Lie::Changed => {
                let mut bytes = frame(sequence, lie, uids);
                for _ in 0..1 + chance() % 4 {
                    // Behind the length, which stays.
                    let at = 4 + chance() % (bytes.len() - 4);
                    bytes[at] = chance() as u8;
                }
                bytes
            }
            Lie::Endless => u32::MAX.to_le_bytes().to_vec(),
            Lie::Flood | Lie::Slowly | Lie::Nonsense | Lie::NoHttp => frame(sequence, lie, uids),
        };
        if lie == Lie::Slowly {
            for byte in bytes {
                stream.write_all(&[byte])?;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        } else {
            stream.write_all(&bytes)?;
        }
        if lie == Lie::Endless {
            let _ = stream.read(&mut asked)?;
        }
    }
    Ok(())
}

/// A valid frame with impossible counts.
fn frame(sequence: u64, lie: Lie, uids: &[String]) -> Vec<u8> {
    let pods = uids.iter().map(|uid| PodRecord {
        pod: pod_id(uid),
        in_flight: 9_000_000,
        waiting_bytes: 1 << 49,
        score: Measured::exact(1.0),
        ..PodRecord::default()
    });
    let pods: Vec<PodRecord> = pods.collect();
    let body = match sequence {
        1 => Body::Full(LoadReport { pods, ..LoadReport::default() }),
        _ => Body::Delta(Delta { pods, ..Delta::default() }),
    };
    let mut out = BytesMut::new();
    Frame { instance: 1, sequence, body, ..Frame::default() }.encode(&mut out);
    if lie == Lie::Nonsense {
        // NaN, where the last float of the last pod is; the lists behind it are empty.
        let behind = if sequence == 1 { 8 } else { 16 };
        let at = out.len() - behind - 4;
        out[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    out.to_vec()
}
