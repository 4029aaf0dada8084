//! Arbitrary bytes in place of the head of a request.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pd_router::laws::head(bytes));

#[cfg(not(fuzzing))]
fn main() {}
