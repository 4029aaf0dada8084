//! The payload of a TCP segment, and the memory in which the head of a response is read.

use core::marker::PhantomData;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use router_common::http::{HEAD_WINDOW, HeadBytes, HeadScan, Payload, Segment};

use crate::counters::{Loss, forget, lost, masked};
use crate::fields::field;
use crate::maps::{HeadScratch, SCRATCH};
use crate::socket;

/// Where the head of a response is read. The functions behind it are global: each is verified once, and
/// can take no pointer but the context.
pub trait HeadMemory {
    fn scratch(skb: *mut __sk_buff) -> Option<*mut HeadScratch>;
    /// Searches `count` bytes from `start`; returns 0 if they cannot be loaded.
    fn search(skb: *mut __sk_buff, start: u32, count: u32) -> u32;
    /// Applies what was found in the `count` bytes.
    fn settle(skb: *mut __sk_buff, count: u32) -> u32;
}

/// Memory of the CPU, for programs that no other program interrupts.
pub struct CpuMemory;

impl HeadMemory for CpuMemory {
    #[inline(always)]
    fn scratch(_: *mut __sk_buff) -> Option<*mut HeadScratch> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: a live map value.
        Some(unsafe { &raw mut (*scratch).head })
    }

    #[inline(always)]
    fn search(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
        pd_search_head(skb, start, count)
    }

    #[inline(always)]
    fn settle(_: *mut __sk_buff, count: u32) -> u32 {
        pd_settle_head(count)
    }
}

/// Memory of the socket that sends the segment.
pub struct SocketMemory;

impl HeadMemory for SocketMemory {
    #[inline(always)]
    fn scratch(skb: *mut __sk_buff) -> Option<*mut HeadScratch> {
        socket::head_scratch(socket::of_packet(skb)?)
    }

    #[inline(always)]
    fn search(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
        pd_search_socket_head(skb, start, count)
    }

    #[inline(always)]
    fn settle(skb: *mut __sk_buff, count: u32) -> u32 {
        pd_settle_socket_head(skb, count)
    }
}

/// The payload of the current packet.
pub struct TcpPayload<M> {
    skb: *mut __sk_buff,
    /// Offset in the packet.
    start: u32,
    length: u32,
    memory: PhantomData<M>,
}

impl<M: HeadMemory> TcpPayload<M> {
    /// The payload of `segment`, which begins at `start`.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff, start: u32, segment: &Segment) -> TcpPayload<M> {
        TcpPayload { skb, start, length: segment.length, memory: PhantomData }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> [u8; N] {
        let mut bytes = [0; N];
        // SAFETY: the helper checks the offset, and fills all of `bytes` or clears them.
        unsafe {
            bpf_skb_load_bytes(self.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32);
        }
        bytes
    }
}

impl<M: HeadMemory> Payload for TcpPayload<M> {
    #[inline(always)]
    fn four(&self, at: u32) -> [u8; 4] {
        let start = self.start.wrapping_add(at);
        // A copy, so that the verifier learns nothing of the length itself.
        let bytes = match self.forget(self.length.wrapping_sub(at)) {
            0 => [0; 4],
            1 => {
                let [a] = self.load(start);
                [a, 0, 0, 0]
            }
            2 => {
                let [a, b] = self.load(start);
                [a, b, 0, 0]
            }
            3 => {
                let [a, b, c] = self.load(start);
                [a, b, c, 0]
            }
            _ => self.load(start),
        };
        self.forget(u32::from_ne_bytes(bytes)).to_ne_bytes()
    }

    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        forget(value as u64, field!(__sk_buff, self.skb, len) as u64) as u32
    }

    #[inline(always)]
    fn scan(&mut self, skip: u32, head: &mut HeadScan) -> u32 {
        let start = self.start.wrapping_add(skip);
        let length = self.length.wrapping_sub(skip);
        let count = if length > HEAD_WINDOW { HEAD_WINDOW } else { length };
        let Some(scratch) = M::scratch(self.skb) else {
            lost(Loss::Stream);
            return 0;
        };
        // SAFETY: a live map value.
        unsafe {
            (*scratch).head = *head;
            if M::search(self.skb, start, count) == 0 {
                return 0;
            }
            M::settle(self.skb, count);
            *head = (*scratch).head;
            (*scratch).head.read
        }
    }

    #[inline(always)]
    fn last(&self, count: u32) -> u64 {
        let end = self.start.wrapping_add(self.length);
        if count >= 8 {
            return u64::from_be_bytes(self.load(end.wrapping_sub(8)));
        }
        // The compiler must not remove the bound of the loop, which the verifier needs.
        let count = self.forget(count);
        let mut number = 0;
        for index in 0..8 {
            if index >= count {
                break;
            }
            let [byte] = self.load(end.wrapping_sub(count).wrapping_add(index));
            number = (number << 8) | byte as u64;
        }
        number
    }
}

#[inline(always)]
fn search<M: HeadMemory>(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
    if count == 0 || count > HEAD_WINDOW {
        return 0;
    }
    let Some(scratch) = M::scratch(skb) else { return 0 };
    // The verifier needs the bounds: at least 1 and at most HEAD_WINDOW.
    let count = masked::<{ HEAD_WINDOW as u64 - 1 }>(count as u64 - 1) as u32 + 1;
    // SAFETY: a live map value with at least `count` bytes; the helper checks the offset.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), start, (&raw mut (*scratch).bytes).cast(), count) != 0 {
            return 0;
        }
        (*scratch).head.search(&mut ScratchBytes(scratch), count);
    }
    1
}

#[inline(always)]
fn settle<M: HeadMemory>(skb: *mut __sk_buff, count: u32) -> u32 {
    if let Some(scratch) = M::scratch(skb) {
        // SAFETY: a live map value.
        unsafe { (*scratch).head.settle(&mut ScratchBytes(scratch), count) };
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_search_head(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
    search::<CpuMemory>(skb, start, count)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_settle_head(count: u32) -> u32 {
    settle::<CpuMemory>(core::ptr::null_mut(), count)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_search_socket_head(skb: *mut __sk_buff, start: u32, count: u32) -> u32 {
    search::<SocketMemory>(skb, start, count)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pd_settle_socket_head(skb: *mut __sk_buff, count: u32) -> u32 {
    settle::<SocketMemory>(skb, count)
}

/// Bytes that were copied to the scratch memory.
struct ScratchBytes(*mut HeadScratch);

impl HeadBytes for ScratchBytes {
    #[inline(always)]
    fn byte(&self, index: u32) -> u8 {
        let index = masked::<{ HEAD_WINDOW as u64 - 1 }>(index as u64) as usize;
        // SAFETY: the index is within the bytes of a live map value.
        unsafe { (&raw const (*self.0).bytes).cast::<u8>().add(index).read() }
    }
}
