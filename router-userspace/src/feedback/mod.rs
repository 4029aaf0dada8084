//! The loop from the kernel to the choice: agents publish load frames, gateways subscribe.
//!
//! [`publish`] is the agent's side. `subscribe` keeps one subscription to each agent, `ear` takes
//! in what one of them tells, and `targets` says whose workers it tells of. All of it runs in
//! `turns`, on a thread of its own.

mod budget;
mod ear;
mod ended;
mod frames;
pub mod publish;
mod subscribe;
mod targets;
mod told;
mod turns;

pub(crate) use subscribe::{Listening, Subscriptions};
