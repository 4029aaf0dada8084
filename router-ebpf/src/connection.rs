//! Which pod a connection belongs to, whom it talks to and what about.

use router_common::flow::{
    CLASS_BOOTSTRAP, CLASS_ENGINE, CLASS_KV, CLASS_KV_CONTROL, CLASS_OTHER, Endpoint, FlowKey,
    POD_LOCAL, POD_SHARES_ADDRESS, PairKey, Pod, PodPort, ROLE_DECODE, ROLE_PREFILL,
};

use crate::maps::{PODS, PORT_CLASSES, SETTINGS};

/// What stands for an address: its pod, or that several share it.
#[inline(always)]
fn entry_at(address: [u8; 16]) -> Option<*mut Pod> {
    PODS.get_ptr_mut(Endpoint { address, port: 0, reserved: 0 })
}

/// The same where the pod, or those that share the address, are of this node.
#[inline(always)]
pub fn local_entry_at(address: [u8; 16]) -> Option<*mut Pod> {
    local(entry_at(address)?)
}

/// The pod that an entry stands for: another by its port where several share the address.
#[inline(always)]
fn pod_of(entry: *mut Pod, address: [u8; 16], port: u16) -> Option<*mut Pod> {
    // SAFETY: a live map value; the agent replaces it whole.
    if unsafe { (*entry).flags } & POD_SHARES_ADDRESS == 0 {
        return Some(entry);
    }
    PODS.get_ptr_mut(Endpoint { address, port, reserved: 0 })
}

/// The same, for a pod of this node only.
#[inline(always)]
pub fn local_pod_of(entry: *mut Pod, address: [u8; 16], port: u16) -> Option<*mut Pod> {
    local(pod_of(entry, address, port)?)
}

#[inline(always)]
fn local(pod: *mut Pod) -> Option<*mut Pod> {
    // SAFETY: a live map value.
    if unsafe { (*pod).flags } & POD_LOCAL != 0 { Some(pod) } else { None }
}

/// The pod at an address, and at a port where several share the address.
#[inline(always)]
fn pod_at(address: [u8; 16], port: u16) -> Option<*mut Pod> {
    pod_of(entry_at(address)?, address, port)
}

/// The counters that a local pod's connection adds to; nothing if no local pod has it.
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
        if carries_kv(flow.local_port) || carries_kv(flow.remote_port) {
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

/// Between a prefill and a decode.
#[inline(always)]
fn is_transfer(one: u32, other: u32) -> bool {
    (one == ROLE_PREFILL && other == ROLE_DECODE) || (one == ROLE_DECODE && other == ROLE_PREFILL)
}

/// A port of KV cache, as far as ports tell.
#[inline(always)]
pub fn carries_kv(port: u16) -> bool {
    match SETTINGS.get(0) {
        Some(settings) => port >= settings.kv_first && port <= settings.kv_last,
        None => false,
    }
}
