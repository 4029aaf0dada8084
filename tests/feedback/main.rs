//! From the kernel's counters to the choice of a pair: gateways, an agent and engines in network
//! namespaces of the test's own, and trouble that only the kernel sees. Needs root and BPF.

mod agents;
mod inner_parts;
mod liar;
mod moves;
mod pace;
mod round_trips;
