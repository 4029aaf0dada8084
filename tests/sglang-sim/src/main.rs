//! The `sglang-sim` command.

fn main() {}
