//! The types and constants that the eBPF programs and userspace share.
//!
//! [`flow`] has the keys and values of the maps, [`http`] the state of one HTTP connection as its TCP
//! sequence shows it, [`roce`] the detection of retransmitted RoCEv2 packets, and [`maps`] the names
//! and capacities of the maps. Types of keys and values are `bytemuck::Pod`: userspace copies them from
//! and to the kernel as bytes.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod control;
pub mod flow;
pub mod histogram;
pub mod http;
pub mod maps;
pub mod roce;
