//! Tests of the whole RDMA module, on hand-built answers and on recordings of real kernels.

mod families;
mod frames;
pub(crate) mod golden;
pub(crate) mod node;
mod recorded;
pub(crate) mod rounds;
pub(crate) mod tree;
