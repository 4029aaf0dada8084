//! cgroup_skb on the cgroup root: counts requests, KV cache and payload at the sockets of local pods, on
//! whichever way their packets come, after they were put together (GRO) and before they are cut (GSO).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, bpf_sock};
use aya_ebpf::helpers::generated::bpf_tcp_sock;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::{SkBuffContext, TcContext};
use router_common::flow::{
    FlowKey, POD_BY_INTERFACE, PodSocket, SOCKET_CONTROL, SOCKET_ENGINE, SOCKET_HTTP, SOCKET_KV,
    SOCKET_MAY_CONTROL, mapped,
};
use router_common::http::{HttpStream, Segment, TCP_SYN};

use crate::connection::{local_pod_at, serves};
use crate::control::{HAS_CONTROL, Headers, pd_control};
use crate::counters::{add, forget};
use crate::fields::field;
use crate::maps::{EARLY, POD_TRAFFIC, SCRATCH};
use crate::packet::{FrameBytes as _, tcp_header, tcp_offset};
use crate::payload::{SocketMemory, TcpPayload};
use crate::requests::{self, ENDS, now};
use crate::socket;

/// Verdict of the programs: the packet passes.
const PASS: i32 = 1;

const TCP_LISTEN: u32 = 10;

#[cgroup_skb(ingress)]
pub fn pd_cgroup_ingress(ctx: SkBuffContext) -> i32 {
    dispatch(ctx.as_ptr().cast()).map_or(PASS, |()| PASS)
}

#[cgroup_skb(egress)]
pub fn pd_cgroup_egress(ctx: SkBuffContext) -> i32 {
    dispatch_sent(ctx.as_ptr().cast()).map_or(PASS, |()| PASS)
}

/// The TCP segment of a packet, the offset of its payload, and its ports.
struct TcpPacket {
    segment: Segment,
    /// Offset of the TCP header in the packet.
    transport: u32,
    payload: u32,
    source: u16,
    destination: u16,
}

#[inline(always)]
fn parse(skb: *mut __sk_buff) -> Option<TcpPacket> {
    let packet = TcContext::new(skb);
    let length = field!(__sk_buff, skb, len);
    let offset = forget(tcp_offset(&packet)? as u64, length as u64) as usize;
    let header = tcp_header(&packet, offset)?;
    let payload = offset as u32 + header.size;
    Some(TcpPacket {
        segment: Segment {
            sequence: header.sequence,
            acknowledged: header.acknowledged,
            length: length.saturating_sub(payload),
            flags: header.flags,
        },
        transport: offset as u32,
        payload,
        source: header.source,
        destination: header.destination,
    })
}

/// A packet at a socket of a local pod.
struct SocketPacket {
    socket: *mut bpf_sock,
    known: *mut PodSocket,
    segment: Segment,
    transport: u32,
    payload: u32,
}

#[inline(always)]
fn at_socket(skb: *mut __sk_buff) -> Option<SocketPacket> {
    let socket = socket::of_packet(skb)?;
    let known = socket::of_pod(socket)?;
    let TcpPacket { segment, transport, payload, .. } = parse(skb)?;
    Some(SocketPacket { socket, known, segment, transport, payload })
}

/// Whether a segment concerns the HTTP connection of a socket of this kind.
#[inline(always)]
fn is_http(kind: u32, segment: &Segment) -> bool {
    kind & SOCKET_ENGINE != 0 && (segment.length > 0 || segment.flags & ENDS != 0)
}

#[inline(always)]
fn dispatch(skb: *mut __sk_buff) -> Option<()> {
    let socket = socket::of_packet(skb)?;
    if field!(bpf_sock, socket, state) == TCP_LISTEN {
        pd_early_data(skb);
    } else {
        hand_up(skb, pd_receive(skb), 0);
    }
    Some(())
}

#[inline(always)]
fn dispatch_sent(skb: *mut __sk_buff) -> Option<()> {
    hand_up(skb, pd_send(skb), 1);
    Some(())
}

#[inline(always)]
fn hand_up(skb: *mut __sk_buff, counted: u32, sent: u32) {
    if counted & HAS_CONTROL != 0 {
        pd_control(skb, counted, sent);
    }
}

/// The kinds of sockets that may have control messages.
const CONTROL: u32 = SOCKET_CONTROL | SOCKET_MAY_CONTROL;

/// Counts what a connected socket receives.
///
/// A global function, as the next: each has the stack for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_receive(skb: *mut __sk_buff) -> u32 {
    received(skb).unwrap_or(0)
}

#[inline(always)]
fn received(skb: *mut __sk_buff) -> Option<u32> {
    let SocketPacket { socket, known, segment, transport, payload } = at_socket(skb)?;
    // SAFETY: live map values.
    unsafe {
        let kind = (*known).kind;
        if segment.length > 0 {
            let traffic = POD_TRAFFIC.get_ptr_mut((*known).pod)?;
            // Atomic: an interrupt may count on the same CPU.
            add(&raw mut (*traffic).socket_rx_payload, segment.length as u64);
            if kind & SOCKET_KV != 0 {
                add(&raw mut (*traffic).rx_kv_payload, new_bytes(socket, &segment) as u64);
            }
            if kind & CONTROL != 0 {
                return Some(Headers::control(transport, payload));
            }
        }
        if !is_http(kind, &segment) {
            return None;
        }
        let bytes = TcpPayload::new(skb, payload, &segment);
        if kind & SOCKET_HTTP == 0 && !socket::begin(known, socket, Some((&segment, &bytes))) {
            return None;
        }
        let change = (*known).stream.on_client_segment(&segment, &bytes, now);
        requests::apply((*known).pod, &change);
    }
    socket::list(known, socket).map(|()| 1)
}

/// The bytes of a segment that the socket has not received yet.
#[inline(always)]
fn new_bytes(socket: *mut bpf_sock, segment: &Segment) -> u32 {
    // SAFETY: the verifier has seen the socket checked.
    let next = unsafe {
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() {
            return segment.length;
        }
        (*tcp).rcv_nxt
    };
    let old = next.wrapping_sub(segment.sequence);
    // More than half of all numbers: the segment is ahead of what was received in order.
    if old > u32::MAX / 2 { segment.length } else { segment.length.saturating_sub(old) }
}

/// Counts what a connected socket sends.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_send(skb: *mut __sk_buff) -> u32 {
    sent(skb).unwrap_or(0)
}

#[inline(always)]
fn sent(skb: *mut __sk_buff) -> Option<u32> {
    // The SYN-ACK of a connection that has no socket yet.
    if field!(bpf_sock, socket::of_packet(skb)?, state) == TCP_LISTEN {
        return None;
    }
    let SocketPacket { socket, known, segment, transport, payload } = at_socket(skb)?;
    // SAFETY: live map values.
    unsafe {
        let kind = (*known).kind;
        if segment.length > 0 {
            let traffic = POD_TRAFFIC.get_ptr_mut((*known).pod)?;
            add(&raw mut (*traffic).socket_tx_payload, segment.length as u64);
            if kind & CONTROL != 0 {
                return Some(Headers::control(transport, payload));
            }
        }
        if !is_http(kind, &segment) {
            return None;
        }
        if kind & SOCKET_HTTP == 0 && !socket::begin(known, socket, None) {
            return None;
        }
        answer(skb, known, &segment, payload);
    }
    socket::list(known, socket).map(|()| 1)
}

/// Applies a segment that an engine sends. Only one at a time is sent by a socket.
#[inline(always)]
unsafe fn answer(skb: *mut __sk_buff, known: *mut PodSocket, segment: &Segment, payload: u32) {
    let mut bytes = TcpPayload::<SocketMemory>::new(skb, payload, segment);
    // SAFETY: a live map value.
    unsafe {
        let stream = &raw mut (*known).stream;
        let head = (*stream).read_head(segment, &mut bytes);
        let change = (*stream).on_engine_segment(segment, head, &bytes, now);
        requests::apply((*known).pod, &change);
    }
}

/// Keeps the beginning of a request that comes before its socket exists: with the SYN (TCP Fast Open) or
/// with the end of the handshake. It counts if a socket with this beginning comes to exist: a listener also
/// gets data of connections that it does not know.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_early_data(skb: *mut __sk_buff) -> u32 {
    keep_early(skb).map_or(0, |()| 1)
}

#[inline(always)]
fn keep_early(skb: *mut __sk_buff) -> Option<()> {
    let TcpPacket { segment, payload, source: remote_port, destination: local_port, .. } =
        parse(skb)?;
    if segment.length == 0 {
        return None;
    }
    let (local, remote) = addresses(skb)?;
    let pod = local_pod_at(local, local_port)?;
    // SAFETY: a live map value.
    let (id, flags) = unsafe { ((*pod).id, (*pod).flags) };
    let traffic = POD_TRAFFIC.get_ptr_mut(id)?;
    // SAFETY: a live map value. The socket that comes to exist reports these bytes as received.
    unsafe { add(&raw mut (*traffic).socket_rx_payload, segment.length as u64) };
    if flags & POD_BY_INTERFACE != 0 || !serves(pod, local_port) {
        return None;
    }
    let scratch = SCRATCH.get_ptr_mut(0)?;
    let syn = (segment.flags & TCP_SYN != 0) as u32;
    // SAFETY: live map values. What a socket receives runs with bottom halves disabled.
    let stream = unsafe {
        (*scratch).flow = FlowKey { local, remote, local_port, remote_port };
        let start = segment.sequence.wrapping_add(syn);
        (*scratch).stream = HttpStream::from_start(id, start, segment.acknowledged);
        let (flow, stream) = (&(*scratch).flow, &(*scratch).stream);
        EARLY.insert(flow, stream, BPF_ANY as u64).ok()?;
        EARLY.get_ptr_mut(flow)?
    };
    let bytes = TcpPayload::<SocketMemory>::new(skb, payload, &segment);
    // SAFETY: a live map value.
    let _ = unsafe { (*stream).on_client_segment(&segment, &bytes, now) };
    Some(())
}

/// The destination and source of a packet.
#[inline(always)]
fn addresses(skb: *mut __sk_buff) -> Option<([u8; 16], [u8; 16])> {
    let packet = TcContext::new(skb);
    let [first, _] = packet.read(0)?;
    if first >> 4 == 4 {
        let both: [u8; 8] = packet.read(12)?;
        let [a, b, c, d, e, f, g, h] = both;
        return Some((mapped([e, f, g, h]), mapped([a, b, c, d])));
    }
    Some((packet.read(24)?, packet.read(8)?))
}
