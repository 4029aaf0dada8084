//! Parses frames of interfaces and IP packets of sockets: addresses, ports and the position of the payload,
//! with bounds checks.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::{TcContext, XdpContext};
use router_common::flow::{FlowKey, mapped};

use crate::counters::{Loss, lost};
use crate::maps::ProgramScratch;

/// Maximum offset at which a header may begin. IPv6 extension headers could reach farther; such packets
/// are not parsed.
const MAX_OFFSET: usize = 1024;

/// A frame whose bytes may be read by offset.
pub trait FrameBytes {
    /// The `N` bytes at `offset`; `None` if the frame ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Length of the frame in bytes.
    fn length(&self) -> usize;
}

#[inline(always)]
fn read_linear<const N: usize>(start: usize, end: usize, offset: usize) -> Option<[u8; N]> {
    if offset > MAX_OFFSET {
        return None;
    }
    let from = start + offset;
    if from + N > end {
        return None;
    }
    // SAFETY: `from..from + N` lies within the frame.
    Some(unsafe { (from as *const [u8; N]).read_unaligned() })
}

impl FrameBytes for XdpContext {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        read_linear(self.data(), self.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.data_end() - self.data()
    }
}

impl FrameBytes for TcContext {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if let Some(bytes) = read_linear(self.data(), self.data_end(), offset) {
            return Some(bytes);
        }
        // Headers may lie outside of the linear part.
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

/// Index of the interface that the frame arrived on or leaves by.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).ifindex }
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Which end of a packet can be the local pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToPod,
    FromPod,
}

/// An IP packet in a frame.
pub struct Packet {
    /// Transport protocol; [`NO_NEXT`] for a later fragment, which has no transport header.
    pub protocol: u8,
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Offset of the end of the packet in the frame.
    pub end: usize,
    /// Length of the IP packet in bytes.
    pub length: u64,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// Finds the IP packet behind Ethernet and up to two VLAN tags, and writes its addresses to the
/// scratch's flow.
#[inline(always)]
pub fn parse<F: FrameBytes>(
    frame: &F,
    direction: Direction,
    scratch: *mut ProgramScratch,
) -> Option<Packet> {
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
        IPV4 => count_unparsed(parse_v4(frame, at, direction, flow)),
        IPV6 => count_unparsed(parse_v6(frame, at, direction, flow)),
        VLAN | SERVICE_VLAN => count_unparsed(None),
        _ => None,
    }
}

impl Packet {
    /// Returns the packet with numbers of which the verifier knows no bounds. Otherwise it would verify the
    /// rest of the program once for each direction through the headers. XDP does not need it: little follows.
    #[inline(always)]
    pub fn without_bounds(self, scratch: *mut ProgramScratch) -> Packet {
        Packet {
            protocol: unbounded(scratch, self.protocol as u64) as u8,
            transport: unbounded(scratch, self.transport as u64) as usize,
            end: unbounded(scratch, self.end as u64) as usize,
            length: unbounded(scratch, self.length),
        }
    }
}

/// Passes a number through the scratch memory, so that the verifier forgets its bounds.
#[inline(always)]
pub fn unbounded(scratch: *mut ProgramScratch, value: u64) -> u64 {
    // SAFETY: a live map value.
    unsafe {
        let slot = &raw mut (*scratch).unbounded;
        slot.write_volatile(value);
        slot.read_volatile()
    }
}

/// Counts a loss if an IP packet cannot be parsed, or has more VLAN tags than are parsed.
#[inline(always)]
fn count_unparsed(packet: Option<Packet>) -> Option<Packet> {
    if packet.is_none() {
        lost(Loss::Header);
    }
    packet
}

#[inline(always)]
fn parse_v4<F: FrameBytes>(
    frame: &F,
    at: usize,
    direction: Direction,
    flow: *mut FlowKey,
) -> Option<Packet> {
    let header: [u8; 20] = frame.read(at)?;
    if header[0] >> 4 != 4 {
        return None;
    }
    let words = (header[0] & 15) as usize;
    if words < 5 {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    // Packets above 64 KiB (BIG TCP) have length 0: the frame gives the length.
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    let length = if total == 0 { frame.length().saturating_sub(at) } else { total };
    let source = mapped([header[12], header[13], header[14], header[15]]);
    let destination = mapped([header[16], header[17], header[18], header[19]]);
    write_addresses(flow, direction, source, destination);
    Some(Packet {
        protocol: if fragment == 0 { header[9] } else { NO_NEXT },
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
/// No header follows (RFC 8200 4.7).
const NO_NEXT: u8 = 59;
/// Maximum number of extension headers that are parsed (RFC 8200 4.1 lists six, one of them twice).
const EXTENSIONS: usize = 6;

#[inline(always)]
fn parse_v6<F: FrameBytes>(
    frame: &F,
    at: usize,
    direction: Direction,
    flow: *mut FlowKey,
) -> Option<Packet> {
    let header: [u8; 8] = frame.read(at)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    write_addresses(flow, direction, frame.read(at + 8)?, frame.read(at + 24)?);
    let payload = u16::from_be_bytes([header[4], header[5]]) as usize;
    let length = if payload == 0 { frame.length().saturating_sub(at) } else { payload + 40 };
    let (protocol, transport) = skip_extensions(frame, header[6], at + 40);
    Some(Packet { protocol, transport, end: at + length, length: length as u64 })
}

/// The transport protocol, and the offset of its header, behind the IPv6 extension headers that begin with
/// one of type `protocol` at `transport`.
#[inline(always)]
fn skip_extensions<F: FrameBytes>(
    frame: &F,
    mut protocol: u8,
    mut transport: usize,
) -> (u8, usize) {
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
                            protocol = NO_NEXT;
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
    (protocol, transport)
}

/// The offset of the TCP header in a packet of a TCP socket, which begins with its IP header.
#[inline(always)]
pub fn tcp_offset<F: FrameBytes>(packet: &F) -> Option<usize> {
    let header: [u8; 8] = packet.read(0)?;
    match header[0] >> 4 {
        4 => Some((header[0] & 15) as usize * 4),
        6 if header[6] == TCP => Some(40),
        6 => {
            let (protocol, transport) = skip_extensions(packet, header[6], 40);
            if protocol == TCP { Some(transport) } else { None }
        }
        _ => None,
    }
}

#[inline(always)]
fn write_addresses(
    flow: *mut FlowKey,
    direction: Direction,
    source: [u8; 16],
    destination: [u8; 16],
) {
    let (local, remote) =
        if direction == Direction::ToPod { (destination, source) } else { (source, destination) };
    // SAFETY: a live map value.
    unsafe {
        (*flow).local = local;
        (*flow).remote = remote;
    }
}

/// The fields of a TCP header that the programs read.
pub struct TcpHeader {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    /// Length of the header in bytes, options included.
    pub size: u32,
}

/// The TCP header at `offset`.
#[inline(always)]
pub fn tcp_header<F: FrameBytes>(frame: &F, offset: usize) -> Option<TcpHeader> {
    let header: [u8; 14] = frame.read(offset)?;
    Some(TcpHeader {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        acknowledged: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        flags: header[13],
        size: (header[12] >> 4) as u32 * 4,
    })
}

/// The sequence numbers and payload of a TCP segment; all zero if the packet has none. Not an `Option`:
/// the compiler would copy its uninitialised half, which the verifier refuses.
#[derive(Default)]
pub struct Tcp {
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    /// Offset of the payload in the frame.
    pub payload: usize,
    /// Length of the payload in bytes.
    pub length: u32,
}

/// Parses the TCP header, and writes its ports to `flow`; zeros if there is none.
#[inline(always)]
pub fn tcp<F: FrameBytes>(
    frame: &F,
    packet: &Packet,
    direction: Direction,
    flow: *mut FlowKey,
) -> Tcp {
    // SAFETY: a live map value.
    unsafe {
        (*flow).local_port = 0;
        (*flow).remote_port = 0;
    }
    if packet.protocol != TCP {
        return Tcp::default();
    }
    let Some(header) = tcp_header(frame, packet.transport) else { return Tcp::default() };
    let TcpHeader { source, destination, .. } = header;
    let (local, remote) =
        if direction == Direction::ToPod { (destination, source) } else { (source, destination) };
    // SAFETY: as above.
    unsafe {
        (*flow).local_port = local;
        (*flow).remote_port = remote;
    }
    let payload = packet.transport + header.size as usize;
    Tcp {
        sequence: header.sequence,
        acknowledged: header.acknowledged,
        flags: header.flags,
        payload,
        length: packet.end.saturating_sub(payload) as u32,
    }
}
