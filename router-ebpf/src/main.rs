//! The eBPF programs of pd-router. They count packets and never drop one: every entry point is a single
//! expression that passes the packet on.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod cgroup_skb;
mod connection;
mod control;
mod counters;
mod fields;
mod inet_sock_set_state;
mod maps;
mod packet;
mod payload;
mod pod_traffic;
mod requests;
mod roce;
mod sock_close;
mod sock_ops;
mod socket;
mod stream;
mod tc_egress;
mod tc_ingress;
mod xdp_ingress;

/// Verdict of the tc programs: TC_ACT_UNSPEC, which equals TCX_NEXT. The next program of the hook runs;
/// any other verdict would keep the programs of a CNI from running.
pub const TC_NEXT: i32 = -1;

/// Helpers that the programs call are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can reach this.
    loop {}
}
