//! RDMA netlink: the requests, and the answers as Rust values.

mod parse;
mod protocol;
mod source;

pub use protocol::NldevCommand;
pub use source::{KernelNetlink, NetlinkSource};

pub(in crate::agent) use parse::{
    DeviceInfo, MAX_COUNTERS, MAX_DEVICES, MAX_PORTS, PortInfo, QueuePair, connection_ids,
    counters, devices, driver, ports, queue_pairs,
};
