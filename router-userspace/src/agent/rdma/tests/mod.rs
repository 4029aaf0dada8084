//! RDMA as a whole, on answers and trees made by hand.

mod families;
mod frames;
pub(crate) mod golden;
pub(crate) mod node;
pub(crate) mod rounds;
pub(crate) mod tree;
