//! The loop from the kernel to the choice: gateways, an agent and engines in network namespaces of
//! the test's own, and trouble that only the kernel sees. Needs root and BPF.

mod agents;
mod liar;
mod moves;
mod pace;
mod round_trips;
