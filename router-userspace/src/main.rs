//! The `pd-router` command: parse, build, run, exit code.

fn main() {}
