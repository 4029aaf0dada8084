//! Arbitrary bytes in place of a file of manifests.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_router::laws::manifest(bytes));

#[cfg(not(fuzzing))]
fn main() {}
