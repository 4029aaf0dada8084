//! Arbitrary bytes in place of an engine's event stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::event(bytes));
