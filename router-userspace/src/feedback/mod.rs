//! The loop from the kernel to the choice: agents publish load frames, gateways subscribe.
//!
//! [`publish`] is the agent's side. `subscribe` keeps one subscription to each agent, `ear` takes
//! in what one of them tells, and `targets` says whose workers it tells of.

mod budget;
mod ear;
pub mod publish;
mod subscribe;
mod targets;

pub(crate) use subscribe::{Listening, Subscriptions};
