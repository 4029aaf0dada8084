//! A packet socket beside the programs: when payload went by, by the kernel's own timestamps.

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use netns::Node;
use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};

/// A TCP segment with payload, over IPv4.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Duration,
    pub(crate) source_port: u16,
    sequence: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Seen>>,
}

impl Watch {
    /// Watches one interface of a node until stopped.
    pub(crate) fn start(node: &Node, link: &str) -> Watch {
        let index = node.netns.sh(&format!("ip -o link show {link}"));
        let index: i32 = index.split(':').next().and_then(|i| i.parse().ok()).expect("an index");
        let socket = node.netns.run(|| {
            let all = SockProtocol::EthAll;
            let socket =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all).expect("raw");
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("timestamps");
            let wait = TimeVal::milliseconds(20);
            setsockopt(&socket, sockopt::ReceiveTimeout, &wait).expect("a timeout");
            socket
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || collect(&socket, index, &stopped));
        Watch { stop, thread }
    }

    pub(crate) fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watching thread")
    }
}

fn collect(socket: &OwnedFd, index: i32, stop: &AtomicBool) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut buffer = vec![0u8; 70_000];
    loop {
        let mut control = cmsg_space!(TimeSpec);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<nix::sys::socket::LinkAddr>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        );
        let Ok(message) = received else {
            if stop.load(Ordering::Relaxed) {
                return seen;
            }
            continue;
        };
        let here = message.address.is_some_and(|from| from.ifindex() == index as usize);
        let stamp = message.cmsgs().expect("control messages").find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        });
        let bytes = message.bytes;
        if let Some(at) = stamp.filter(|_| here) {
            // A busy machine answers late, and TCP sends again what has arrived: the first counts.
            let new =
                segment(&buffer[..bytes], at).filter(|new| !seen.iter().any(|s| is_same(s, new)));
            seen.extend(new);
        }
    }
}

/// Whether two segments have the same place in their connection.
fn is_same(one: &Seen, other: &Seen) -> bool {
    (one.source_port, one.sequence) == (other.source_port, other.sequence)
}

fn segment(frame: &[u8], at: Duration) -> Option<Seen> {
    const IPV4: [u8; 2] = [8, 0];
    let packet = frame.get(14..).filter(|_| frame[12..14] == IPV4)?;
    let header = usize::from(packet[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let tcp = packet.get(header..length).filter(|_| packet[9] == 6)?;
    let payload = tcp.get(usize::from(tcp[12] >> 4) * 4..)?.to_vec();
    let source_port = u16::from_be_bytes([tcp[0], tcp[1]]);
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    (!payload.is_empty()).then_some(Seen { at, source_port, sequence, payload })
}
