//! The feedback loop from kernel counters to scheduling: agents publish load frames, gateways
//! subscribe.
//!
//! [`publish`] is the agent's side. On the gateway's side `subscribe` keeps one stream to each
//! agent, `agent_state` applies its frames, `pod_state` turns a record into the load of the pod's
//! workers, `pod_workers` finds those workers, and `kv_pairs` keeps which pods exchange KV cache. All of it
//! runs on the thread that `runtime` starts, but for `clock_probe`, which asks for the agent's clock, of which
//! `agent_clock` makes its offset.

mod agent_clock;
mod agent_state;
mod budget;
mod clock_probe;
mod frame_splitter;
mod kv_pairs;
mod pod_state;
mod pod_workers;
pub mod publish;
mod runtime;
mod stream_error;
mod subscribe;

pub(crate) use kv_pairs::KvPair;
pub(crate) use subscribe::{SubscriberContext, Subscriptions};
