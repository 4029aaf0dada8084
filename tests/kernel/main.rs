//! The kernel half on the real kernel: pods in network namespaces of the test's own, against what
//! the test itself sends. Needs root and BPF; everything made here goes with the process.

mod agent;
mod chain;
mod connections;
mod inspect;
mod kv;
mod loss;
mod manifests;
mod node;
mod packets;
mod pods;
mod rdma;
mod requests;
mod restart;
mod space;
mod traffic;
mod vm;
mod watch;
mod wire;
