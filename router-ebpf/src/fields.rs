//! Reads fields of contexts and sockets with one load at a constant offset. Otherwise the compiler may
//! merge the loads of two branches into one with a computed pointer, which the verifier refuses.

/// Makes a function that loads a number of one size.
macro_rules! load {
    ($name:ident, $number:ty, $size:literal) => {
        #[inline(always)]
        pub fn $name<const OFFSET: usize, T>(context: *const T) -> $number {
            let value: u64;
            // SAFETY: the context is valid while the program runs; the verifier checks the offset.
            unsafe {
                core::arch::asm!(
                    concat!("{value} = *(", $size, " *)({context} + {offset})"),
                    value = out(reg) value,
                    context = in(reg) context,
                    offset = const OFFSET,
                );
            }
            value as $number
        }
    };
}
load!(load16, u16, "u16");
load!(load32, u32, "u32");
load!(load64, u64, "u64");

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

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

/// The local and remote address of a context that has both as IPv4 and as IPv6, by the names of these four
/// fields. Returns `None` from the function if the context is of another family.
macro_rules! addresses {
    ($type:ty, $context:expr, $local4:ident, $remote4:ident, $local6:ident, $remote6:ident) => {
        match $crate::fields::field!($type, $context, family) {
            $crate::fields::AF_INET => (
                mapped($crate::fields::field!($type, $context, $local4).to_ne_bytes()),
                mapped($crate::fields::field!($type, $context, $remote4).to_ne_bytes()),
            ),
            $crate::fields::AF_INET6 => (
                $crate::fields::address_of([
                    $crate::fields::field!($type, $context, $local6, 0),
                    $crate::fields::field!($type, $context, $local6, 1),
                    $crate::fields::field!($type, $context, $local6, 2),
                    $crate::fields::field!($type, $context, $local6, 3),
                ]),
                $crate::fields::address_of([
                    $crate::fields::field!($type, $context, $remote6, 0),
                    $crate::fields::field!($type, $context, $remote6, 1),
                    $crate::fields::field!($type, $context, $remote6, 2),
                    $crate::fields::field!($type, $context, $remote6, 3),
                ]),
            ),
            _ => return None,
        }
    };
}
pub(crate) use addresses;

/// An IPv6 address of four words in network order.
#[inline(always)]
pub fn address_of(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
