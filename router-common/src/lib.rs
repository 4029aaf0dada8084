//! What the kernel programs and userspace agree on, byte for byte.
//!
//! [`flow`] has the keys and counters that stand in the maps, [`http`] the state of one HTTP
//! connection as its TCP sequence shows it, [`roce`] which packets of RDMA are new, [`maps`] the names
//! and capacities, [`plain`] the way between values and bytes.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod flow;
pub mod histogram;
pub mod http;
pub mod maps;
pub mod plain;
pub mod roce;
