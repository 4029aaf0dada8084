//! Arbitrary bytes in place of an engine's answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::answer(bytes));
