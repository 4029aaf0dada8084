//! Arbitrary bytes in place of an engine's answer.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::answer(bytes));

#[cfg(not(fuzzing))]
fn main() {}
