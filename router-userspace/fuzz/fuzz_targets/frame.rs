//! Arbitrary bytes in place of a stream of load frames.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::frame(bytes));

#[cfg(not(fuzzing))]
fn main() {}
