//! Arbitrary bytes in place of the head of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_router::laws::head(bytes));
