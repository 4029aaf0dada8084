//! The loop from the kernel to the choice: gateways, an agent and engines in network namespaces of
//! the test's own, and trouble that only the kernel sees. Needs root and BPF.

#[path = "../kernel/node.rs"]
#[allow(dead_code, reason = "the kernel tests use more of it")]
mod node;
#[path = "../kernel/space.rs"]
mod space;
#[path = "../kernel/wire.rs"]
#[allow(dead_code, reason = "the kernel tests use more of it")]
mod wire;

mod agents;
mod around;
mod crowd;
mod liar;
mod moves;
mod pace;
mod relay;
mod round_trips;
mod site;
