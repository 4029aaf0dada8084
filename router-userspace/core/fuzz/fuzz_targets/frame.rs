//! Arbitrary bytes in place of a stream of load frames.
#![no_main]

#[path = "../laws.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::frame(bytes));
