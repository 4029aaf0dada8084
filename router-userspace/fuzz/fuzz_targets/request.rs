//! Arbitrary bytes in place of a request's body.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::request(bytes));

#[cfg(not(fuzzing))]
fn main() {}
