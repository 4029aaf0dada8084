//! Arbitrary bytes in place of a stream of load frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::frame(bytes));
