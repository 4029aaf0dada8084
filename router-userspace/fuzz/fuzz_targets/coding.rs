//! Arbitrary bytes in place of a compressed body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_router::laws::coding(bytes));
