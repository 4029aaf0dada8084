//! Arbitrary bytes in place of a file of manifests.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_router::laws::manifest(bytes));
