//! The pod, peer and traffic class of a connection.

use router_common::flow::{
    CLASS_BOOTSTRAP, CLASS_ENGINE, CLASS_KV, CLASS_KV_CONTROL, CLASS_OTHER, FlowKey, POD_LOCAL,
    POD_SHARES_ADDRESS, PairKey, Pod, PodAddress, PodPort, ROLE_DECODE, ROLE_PREFILL,
};

use crate::maps::{PODS, PORT_CLASSES, SETTINGS};

/// The entry of an address: its pod, or the mark that several pods share it.
#[inline(always)]
fn entry_at(address: [u8; 16]) -> Option<*mut Pod> {
    PODS.get_ptr_mut(PodAddress { address, port: 0, reserved: 0 })
}

/// The entry of an address, if its pod or pods run on this node.
#[inline(always)]
pub fn local_entry_at(address: [u8; 16]) -> Option<*mut Pod> {
    local(entry_at(address)?)
}

/// The pod of an entry; looked up by `port` if several pods share the address.
#[inline(always)]
fn pod_of(entry: *mut Pod, address: [u8; 16], port: u16) -> Option<*mut Pod> {
    // SAFETY: a live map value; the agent replaces it whole.
    if unsafe { (*entry).flags } & POD_SHARES_ADDRESS == 0 {
        return Some(entry);
    }
    PODS.get_ptr_mut(PodAddress { address, port, reserved: 0 })
}

/// The pod of an entry, if it runs on this node.
#[inline(always)]
pub fn local_pod_of(entry: *mut Pod, address: [u8; 16], port: u16) -> Option<*mut Pod> {
    local(pod_of(entry, address, port)?)
}

#[inline(always)]
fn local(pod: *mut Pod) -> Option<*mut Pod> {
    // SAFETY: a live map value.
    if unsafe { (*pod).flags } & POD_LOCAL != 0 { Some(pod) } else { None }
}

/// The pod at an address; looked up by `port` if several pods share the address.
#[inline(always)]
fn pod_at(address: [u8; 16], port: u16) -> Option<*mut Pod> {
    pod_of(entry_at(address)?, address, port)
}

/// The pair that a connection counts under; `None` if it has no local pod.
#[inline(always)]
pub fn pair_of(flow: &FlowKey) -> Option<PairKey> {
    let pod = local(pod_at(flow.local, flow.local_port)?)?;
    // SAFETY: live map values, read only.
    let (id, role) = unsafe { ((*pod).id, (*pod).role) };
    let (peer, peer_role) = match pod_at(flow.remote, flow.remote_port) {
        // SAFETY: as above.
        Some(peer) => unsafe { ((*peer).id, (*peer).role) },
        None => (0, 0),
    };
    let class = if let Some(class) = class_of(id, flow.local_port) {
        class
    } else if let Some(class) = class_of(peer, flow.remote_port) {
        class
    } else if is_transfer(role, peer_role) {
        if is_kv_port(flow.local_port) || is_kv_port(flow.remote_port) {
            CLASS_KV
        } else {
            CLASS_KV_CONTROL
        }
    } else {
        CLASS_OTHER
    };
    Some(PairKey { pod: id, peer, class })
}

#[inline(always)]
fn class_of(pod: u32, port: u16) -> Option<u32> {
    if pod == 0 {
        return None;
    }
    // SAFETY: a live map value, read at once.
    let class = unsafe { *PORT_CLASSES.get(PodPort { pod, port, reserved: 0 })? };
    match class {
        CLASS_ENGINE | CLASS_BOOTSTRAP | CLASS_KV | CLASS_KV_CONTROL => Some(class),
        _ => Some(CLASS_OTHER),
    }
}

/// Whether one role is prefill and the other decode.
#[inline(always)]
fn is_transfer(one: u32, other: u32) -> bool {
    (one == ROLE_PREFILL && other == ROLE_DECODE) || (one == ROLE_DECODE && other == ROLE_PREFILL)
}

/// Whether `port` is in the range of KV ports.
#[inline(always)]
pub fn is_kv_port(port: u16) -> bool {
    match SETTINGS.get(0) {
        Some(settings) => port >= settings.kv_first && port <= settings.kv_last,
        None => false,
    }
}

/// Whether `port` is an HTTP port of the engine of `pod`.
#[inline(always)]
pub fn serves(pod: *mut Pod, port: u16) -> bool {
    // SAFETY: a live map value.
    let ports = unsafe { (*pod).http_ports };
    port != 0 && (ports[0] == port || ports[1] == port || ports[2] == port || ports[3] == port)
}

/// Whether a pod is one end of KV transfers.
#[inline(always)]
pub fn transfers(pod: *mut Pod) -> bool {
    // SAFETY: a live map value.
    let role = unsafe { (*pod).role };
    role == ROLE_PREFILL || role == ROLE_DECODE
}

/// Whether a connection of `pod` that is not to its engine carries KV cache.
#[inline(always)]
pub fn carries_kv(pod: *mut Pod, local_port: u16, remote_port: u16) -> bool {
    transfers(pod) && (is_kv_port(local_port) || is_kv_port(remote_port))
}

/// The local pod of an address and port.
#[inline(always)]
pub fn local_pod_at(address: [u8; 16], port: u16) -> Option<*mut Pod> {
    local_pod_of(local_entry_at(address)?, address, port)
}
