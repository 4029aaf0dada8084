//! Reads fields of contexts and sockets with one load at a constant offset. Otherwise the compiler may
//! merge the loads of two branches into one with a computed pointer, which the verifier refuses.

/// Loads four bytes.
#[inline(always)]
pub fn load32<const OFFSET: usize, T>(context: *const T) -> u32 {
    let value: u64;
    // SAFETY: the context is valid while the program runs; the verifier checks the offset.
    unsafe {
        core::arch::asm!(
            "{value} = *(u32 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
        );
    }
    value as u32
}

/// Loads two bytes.
#[inline(always)]
pub fn load16<const OFFSET: usize, T>(context: *const T) -> u16 {
    let value: u64;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "{value} = *(u16 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
        );
    }
    value as u16
}

/// Loads eight bytes.
#[inline(always)]
pub fn load64<const OFFSET: usize, T>(context: *const T) -> u64 {
    let value: u64;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "{value} = *(u64 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
        );
    }
    value
}

/// A 32-bit field of a context: `field!(bpf_sock, context, src_ip4)`, or a word of an array.
macro_rules! field {
    ($type:ty, $context:expr, $field:ident) => {
        $crate::fields::load32::<{ core::mem::offset_of!($type, $field) }, _>($context)
    };
    ($type:ty, $context:expr, $field:ident, $index:expr) => {
        $crate::fields::load32::<{ core::mem::offset_of!($type, $field) + 4 * $index }, _>($context)
    };
}
pub(crate) use field;

/// An IPv6 address of four words in network order.
#[inline(always)]
pub fn address_of(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
