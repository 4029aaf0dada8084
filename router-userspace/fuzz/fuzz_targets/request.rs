//! Arbitrary bytes in place of a request's body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::request(bytes));
