//! The project's chores, one subcommand each.

fn main() {}
