//! The BPF programs and maps: the object is loaded, pinned and attached here and nowhere else.

pub mod maps;
pub mod programs;
mod syscall;
pub mod tables;
