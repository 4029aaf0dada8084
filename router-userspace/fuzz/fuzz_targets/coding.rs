//! Arbitrary bytes in place of a compressed body.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_router::laws::coding(bytes));

#[cfg(not(fuzzing))]
fn main() {}
