//! The kernel half of pd-router. Programs count and never drop: every entry point is one
//! expression that ends in "pass it on".
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connection;
mod counters;
mod inet_sock_set_state;
mod maps;
mod packet;
mod roce;
mod sock_ops;
mod stream;
mod tc_egress;
mod tc_ingress;
mod xdp_ingress;

/// Helpers that the programs call are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program from which this could be reached.
    loop {}
}
