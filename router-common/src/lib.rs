//! What the kernel programs and userspace agree on, byte for byte.
#![no_std]
