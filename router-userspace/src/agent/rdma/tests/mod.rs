//! RDMA as a whole, on answers and trees made by hand, and on those of real kernels.

mod families;
mod frames;
pub(crate) mod golden;
pub(crate) mod node;
mod recorded;
pub(crate) mod rounds;
pub(crate) mod tree;
