//! The TCP sockets of local pods: whose they are, and the state of their HTTP connections, which goes with
//! the socket.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get, bpf_tcp_sock};
use router_common::flow::{
    FlowKey, POD_BY_INTERFACE, PodSocket, SOCKET_ENGINE, SOCKET_HTTP, SOCKET_KV, SOCKET_LISTED,
    SOCKET_MAY_CONTROL, mapped,
};
use router_common::http::{HttpStream, Payload as _, Segment, begins_request};

use crate::connection::{carries_kv, local_pod_at, serves, transfers};
use crate::counters::{Loss, lost};
use crate::fields::{addresses, field, load16};
use crate::maps::{EARLY, HEADS, HeadScratch, SETTINGS, SOCKETS, STREAMS};
use crate::payload::{SocketMemory, TcpPayload};
use crate::requests::{self, now};

const IPPROTO_TCP: u32 = 6;

/// The TCP socket that sends or receives a packet.
#[inline(always)]
pub fn of_packet(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs; helpers get pointers that are not null.
    let socket = unsafe {
        let common = (*skb).__bindgen_anon_2.sk;
        if common.is_null() {
            return None;
        }
        bpf_sk_fullsock(common)
    };
    if socket.is_null() || field!(bpf_sock, socket, protocol) != IPPROTO_TCP {
        return None;
    }
    Some(socket)
}

/// The entry of a socket, if it has one.
#[inline(always)]
pub fn entry(socket: *mut bpf_sock) -> Option<*mut PodSocket> {
    storage(&raw const SOCKETS, socket, 0)
}

/// The memory in which the head of a response of this socket is read.
#[inline(always)]
pub fn head_scratch(socket: *mut bpf_sock) -> Option<*mut HeadScratch> {
    storage(&raw const HEADS, socket, BPF_SK_STORAGE_GET_F_CREATE)
}

#[inline(always)]
fn storage<M, V>(map: *const M, socket: *mut bpf_sock, flags: u32) -> Option<*mut V> {
    // SAFETY: a map of sockets with values `V`, and a socket that the verifier has seen checked.
    let value = unsafe {
        bpf_sk_storage_get(
            map.cast_mut().cast(),
            socket.cast(),
            core::ptr::null_mut(),
            flags as u64,
        )
    };
    if value.is_null() { None } else { Some(value.cast()) }
}

/// The two ends of a connected socket.
#[inline(always)]
pub fn flow(socket: *mut bpf_sock) -> Option<FlowKey> {
    let (local, remote) = addresses!(bpf_sock, socket, src_ip4, dst_ip4, src_ip6, dst_ip6);
    let remote_port = load16::<{ core::mem::offset_of!(bpf_sock, dst_port) }, _>(socket);
    Some(FlowKey {
        local,
        remote,
        local_port: field!(bpf_sock, socket, src_port) as u16,
        remote_port: u16::from_be(remote_port),
    })
}

/// The entry of a local pod's socket, as of the present pods; makes one if there is none. `None` if no
/// local pod has the socket.
#[inline(always)]
pub fn of_pod(socket: *mut bpf_sock) -> Option<*mut PodSocket> {
    let generation = SETTINGS.get(0)?.generation;
    let known = entry(socket);
    if let Some(known) = known {
        // SAFETY: a live map value.
        unsafe {
            if (*known).generation == generation {
                return if (*known).pod == 0 { None } else { Some(known) };
            }
        }
    }
    let flow = flow(socket)?;
    let Some(pod) = local_pod_at(flow.local, flow.local_port) else {
        if let Some(known) = known {
            // SAFETY: as above.
            unsafe {
                (*known).pod = 0;
                (*known).generation = generation;
            }
        }
        return None;
    };
    // SAFETY: live map values.
    let (id, by_interface) = unsafe { ((*pod).id, (*pod).flags & POD_BY_INTERFACE != 0) };
    let kind = if by_interface {
        0
    } else if serves(pod, flow.local_port) {
        SOCKET_ENGINE
    } else if carries_kv(pod, flow.local_port, flow.remote_port) {
        SOCKET_KV | SOCKET_MAY_CONTROL
    } else if transfers(pod) {
        SOCKET_MAY_CONTROL
    } else {
        0
    };
    let known = storage(&raw const SOCKETS, socket, BPF_SK_STORAGE_GET_F_CREATE);
    if known.is_none() && kind == SOCKET_ENGINE {
        lost(Loss::Stream);
    }
    let known: *mut PodSocket = known?;
    // SAFETY: as above.
    unsafe {
        // The state of a connection is that of its pod: what another pod began, it does not end. Nor does
        // it go on after the interface has counted, of which the socket shows nothing.
        let is_same = (*known).pod == id && !by_interface;
        let kept = if is_same { SOCKET_HTTP | SOCKET_LISTED } else { 0 };
        (*known).kind = kind | ((*known).kind & kept);
        (*known).pod = id;
        (*known).generation = generation;
    }
    Some(known)
}

/// Begins the state of the HTTP connection of a socket; returns false if it cannot begin with this packet,
/// which `request` describes if the client sent it.
#[inline(always)]
pub fn begin(
    known: *mut PodSocket,
    socket: *mut bpf_sock,
    request: Option<(&Segment, &TcpPayload<SocketMemory>)>,
) -> bool {
    let Some(flow) = flow(socket) else { return false };
    // SAFETY: live map values, and a socket that the verifier has seen checked.
    unsafe {
        let pod = (*known).pod;
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() {
            return false;
        }
        let (next, received) = ((*tcp).rcv_nxt, (*tcp).bytes_received);
        if let Some(early) = EARLY.get_ptr_mut(flow) {
            // Data that was no connection's may be there too, and be of any time.
            let syn = next.wrapping_sub(received as u32).wrapping_sub(1);
            let is_ours = (*early).pod == pod && (*early).syn == syn;
            if is_ours {
                (*known).stream = *early;
                (*known).kind |= SOCKET_HTTP;
            }
            let _ = EARLY.remove(flow);
            if is_ours {
                requests::apply(pod, &(*known).stream.uncounted());
                return true;
            }
        }
        let Some((segment, payload)) = request else { return false };
        if received == 0 {
            // The connection's first byte is this or a later one.
            (*known).stream = HttpStream::from_start(pod, next, (*tcp).snd_nxt);
        } else if segment.sequence == next && begins_request(payload.four(0)) {
            (*known).stream = HttpStream::from_request(pod, segment);
        } else {
            return false;
        }
        (*known).kind |= SOCKET_HTTP;
    }
    true
}

/// Keeps STREAMS to the connections whose response has no known end: the agent looks there for silent ones.
#[inline(always)]
pub fn list(known: *mut PodSocket, socket: *mut bpf_sock) -> Option<()> {
    // SAFETY: live map values.
    unsafe {
        let is_listed = (*known).kind & SOCKET_LISTED != 0;
        let must_be_listed = (*known).stream.has_no_known_end();
        if !is_listed && !must_be_listed {
            return Some(());
        }
        let flow = flow(socket)?;
        if !must_be_listed {
            (*known).kind &= !SOCKET_LISTED;
            let _ = STREAMS.remove(flow);
        } else if is_listed {
            // Without an entry the map was full when the response began, which counted once.
            (*STREAMS.get_ptr_mut(flow)?).last_ns = (*known).stream.last_ns;
        } else {
            (*known).kind |= SOCKET_LISTED;
            let stream = &(*known).stream;
            if STREAMS.insert(flow, stream, BPF_ANY as u64).is_err() {
                lost(Loss::Stream);
            }
        }
    }
    Some(())
}

/// Ends the HTTP connection of a socket that closes, whatever its packets showed.
#[inline(always)]
pub fn close(socket: *mut bpf_sock) -> Option<()> {
    entry(socket)?;
    let known = of_pod(socket)?;
    // SAFETY: a live map value.
    unsafe {
        if (*known).kind & SOCKET_HTTP == 0 {
            return None;
        }
        let change = (*known).stream.on_close(now);
        requests::apply((*known).pod, &change);
    }
    list(known, socket)
}
