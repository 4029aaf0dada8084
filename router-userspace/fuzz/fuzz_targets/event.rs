//! Arbitrary bytes in place of an engine's event stream.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| router_core::laws::event(bytes));

#[cfg(not(fuzzing))]
fn main() {}
