//! Bounds-checked reads: from a frame to addresses, ports and where the payload is.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::{TcContext, XdpContext};
use router_common::flow::{FlowKey, mapped};

use crate::counters::{Loss, lost};
use crate::maps::Scratch;

/// No header begins beyond this: 14 + 8 of VLAN, 40 + 6 * 2048 of IPv6 would, and is refused.
const FARTHEST: usize = 1024;

/// A frame whose bytes may be read by offset.
pub trait Frame {
    /// The bytes at `offset`, or nothing if they are not all there.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Bytes of the frame.
    fn length(&self) -> usize;
}

#[inline(always)]
fn read_linear<const N: usize>(start: usize, end: usize, offset: usize) -> Option<[u8; N]> {
    if offset > FARTHEST {
        return None;
    }
    let from = start + offset;
    if from + N > end {
        return None;
    }
    // SAFETY: `from..from + N` lies within the frame.
    Some(unsafe { (from as *const [u8; N]).read_unaligned() })
}

impl Frame for XdpContext {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read_linear(self.data(), self.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.data_end() - self.data()
    }
}

impl Frame for TcContext {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if let Some(bytes) = read_linear(self.data(), self.data_end(), offset) {
            return Some(bytes);
        }
        // Headers may lie outside the linear part.
        let mut bytes = [0; N];
        // SAFETY: the helper checks the offset and fills all of `bytes` or fails.
        let failed = unsafe {
            bpf_skb_load_bytes(self.as_ptr(), offset as u32, bytes.as_mut_ptr().cast(), N as u32)
        };
        if failed != 0 { None } else { Some(bytes) }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }
}

/// The interface that the frame came in by or leaves by.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).ifindex }
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Which end of a packet may be a local pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToPod,
    FromPod,
}

/// An IP packet in a frame.
pub struct Packet {
    /// The transport's protocol; 0 for a later fragment, which has no transport header.
    pub protocol: u8,
    /// Where the transport header begins and the packet ends, from the frame's start.
    pub transport: usize,
    pub end: usize,
    /// Bytes of the IP packet.
    pub length: u64,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// Finds the IP packet behind Ethernet and up to two VLAN tags, and writes its addresses to the
/// scratch's flow.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, way: Way, scratch: *mut Scratch) -> Option<Packet> {
    // SAFETY: a live map value.
    let flow = unsafe { &raw mut (*scratch).flow };
    let mut at = 14;
    let mut kind = u16::from_be_bytes(frame.read(12)?);
    if kind == VLAN || kind == SERVICE_VLAN {
        kind = u16::from_be_bytes(frame.read(16)?);
        at = 18;
        if kind == VLAN || kind == SERVICE_VLAN {
            kind = u16::from_be_bytes(frame.read(20)?);
            at = 22;
        }
    }
    match kind {
        IPV4 => readable(parse_v4(frame, at, way, flow)),
        IPV6 => readable(parse_v6(frame, at, way, flow)),
        VLAN | SERVICE_VLAN => readable(None),
        _ => None,
    }
}

impl Packet {
    /// The same without what the verifier knows of the many ways through the headers: it would follow
    /// each of them through all that comes. Where that is little, as in XDP, it need not forget.
    #[inline(always)]
    pub fn forgotten(self, scratch: *mut Scratch) -> Packet {
        Packet {
            protocol: forget(scratch, self.protocol as u64) as u8,
            transport: forget(scratch, self.transport as u64) as usize,
            end: forget(scratch, self.end as u64) as usize,
            length: forget(scratch, self.length),
        }
    }
}

/// Passes a number through the scratch, where the verifier loses sight of its bounds.
#[inline(always)]
pub fn forget(scratch: *mut Scratch, value: u64) -> u64 {
    // SAFETY: a live map value.
    unsafe {
        let forgotten = &raw mut (*scratch).forgotten;
        forgotten.write_volatile(value);
        forgotten.read_volatile()
    }
}

/// Says so where an IP packet is none after all, or stands behind more tags than are followed.
#[inline(always)]
fn readable(packet: Option<Packet>) -> Option<Packet> {
    if packet.is_none() {
        lost(Loss::Header);
    }
    packet
}

#[inline(always)]
fn parse_v4<F: Frame>(frame: &F, at: usize, way: Way, flow: *mut FlowKey) -> Option<Packet> {
    let header: [u8; 20] = frame.read(at)?;
    if header[0] >> 4 != 4 {
        return None;
    }
    let words = (header[0] & 15) as usize;
    if words < 5 {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    // Larger than 64 KiB (BIG TCP) is written as 0: the frame says how long it is.
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    let length = if total == 0 { frame.length().saturating_sub(at) } else { total };
    let source = mapped([header[12], header[13], header[14], header[15]]);
    let destination = mapped([header[16], header[17], header[18], header[19]]);
    ends(flow, way, source, destination);
    Some(Packet {
        protocol: if fragment == 0 { header[9] } else { 0 },
        transport: at + words * 4,
        end: at + length,
        length: length as u64,
    })
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// Extension headers that are followed (RFC 8200 4.1 lists six, one of them twice).
const EXTENSIONS: usize = 6;

#[inline(always)]
fn parse_v6<F: Frame>(frame: &F, at: usize, way: Way, flow: *mut FlowKey) -> Option<Packet> {
    let header: [u8; 8] = frame.read(at)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    ends(flow, way, frame.read(at + 8)?, frame.read(at + 24)?);
    let payload = u16::from_be_bytes([header[4], header[5]]) as usize;
    let length = if payload == 0 { frame.length().saturating_sub(at) } else { payload + 40 };
    let mut protocol = header[6];
    let mut transport = at + 40;
    for _ in 0..EXTENSIONS {
        let size = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {
                let Some(extension) = frame.read::<4>(transport) else {
                    protocol = 0;
                    break;
                };
                let kind = protocol;
                protocol = extension[0];
                match kind {
                    FRAGMENT => {
                        if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                            protocol = 0;
                            break;
                        }
                        8
                    }
                    AUTHENTICATION => (extension[1] as usize + 2) * 4,
                    _ => (extension[1] as usize + 1) * 8,
                }
            }
            _ => break,
        };
        transport += size;
    }
    if matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION) {
        lost(Loss::Header);
    }
    Some(Packet { protocol, transport, end: at + length, length: length as u64 })
}

#[inline(always)]
fn ends(flow: *mut FlowKey, way: Way, source: [u8; 16], destination: [u8; 16]) {
    let (local, remote) =
        if way == Way::ToPod { (destination, source) } else { (source, destination) };
    // SAFETY: a live map value.
    unsafe {
        (*flow).local = local;
        (*flow).remote = remote;
    }
}

/// The sequence and payload of a TCP segment; all zero for what is none. Not an `Option`:
/// the compiler moves its uninitialised half around, which the verifier takes for a read.
#[derive(Default)]
pub struct Tcp {
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    /// Where the payload begins in the frame, and how long it is.
    pub payload: usize,
    pub length: u32,
}

/// Reads the TCP header and writes its ports to `flow`, zeros where there is none.
#[inline(always)]
pub fn tcp<F: Frame>(frame: &F, packet: &Packet, way: Way, flow: *mut FlowKey) -> Tcp {
    // SAFETY: a live map value.
    unsafe {
        (*flow).local_port = 0;
        (*flow).remote_port = 0;
    }
    if packet.protocol != TCP {
        return Tcp::default();
    }
    let Some(header) = frame.read::<14>(packet.transport) else { return Tcp::default() };
    let source = u16::from_be_bytes([header[0], header[1]]);
    let destination = u16::from_be_bytes([header[2], header[3]]);
    let (local, remote) =
        if way == Way::ToPod { (destination, source) } else { (source, destination) };
    // SAFETY: as above.
    unsafe {
        (*flow).local_port = local;
        (*flow).remote_port = remote;
    }
    let payload = packet.transport + (header[12] >> 4) as usize * 4;
    Tcp {
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        acknowledged: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        flags: header[13],
        payload,
        length: packet.end.saturating_sub(payload) as u32,
    }
}
