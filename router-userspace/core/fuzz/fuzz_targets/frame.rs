//! Bytes that a gateway may be sent in the place of load frames.
#![no_main]

#[path = "../laws.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| laws::frame(bytes));
