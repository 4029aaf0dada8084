//! The eBPF programs on the real kernel: pods in network namespaces of the test's own, against what
//! the test itself sends. Needs root and BPF; everything made here is removed with the process.

mod carrier;
mod cgroup_links;
mod chain;
mod connections;
mod control;
mod engines;
mod frames;
mod histograms;
mod hosted;
mod http_edges;
mod inspect;
mod kv;
mod learned;
mod loss;
mod other_programs;
mod packets;
mod pods;
mod prepare;
mod privileges;
mod rdma;
mod receivers;
mod repeats;
mod requests;
mod restart;
mod roce;
mod sockets_met_late;
mod tcp_option;
mod topologies;
mod unseen;
mod vm;
mod watch;
mod without_sockets;
