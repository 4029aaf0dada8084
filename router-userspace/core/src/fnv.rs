//! FNV-1a: a hash that is the same in every process and build, unlike the standard library's.

/// Returns the 64-bit FNV-1a hash of `bytes`.
///
/// ```
/// assert_eq!(router_core::fnv::fnv1a(*b"a"), 0xaf63_dc4c_8601_ec8c);
/// ```
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns [`fnv1a`], or 1 where it is 0, for identifiers whose 0 means "none".
pub fn fnv1a_nonzero(bytes: impl IntoIterator<Item = u8>) -> u64 {
    fnv1a(bytes).max(1)
}
