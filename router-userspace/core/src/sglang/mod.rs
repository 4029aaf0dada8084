//! The engine's protocol: what SGLang's prefill and decode servers read and answer.
//!
//! Requests: [`Endpoint`], [`Request::parse`] (reads the few fields that a gateway needs and keeps
//! the client's bytes), [`Attempt`] and [`Request::inject`] (the two bodies of one attempt).
//! Answers: [`sse`] (splits chunks into events), [`fault`] (failures in all formats), [`merge`]
//! (merges n samples into one answer), [`logprob`] (merges prefill's part of an answer). Also:
//! [`headers`], [`info`], [`loads`], [`ranks`], [`usage`] (what an engine reports of a request).
//!
//! This module does no I/O and draws no random numbers: the caller passes them to make a [`Room`]
//! and a [`Rid`]. Field names and formats are those of SGLang 0.4.10 and 0.5.23.
//!
//! ```
//! use bytes::Bytes;
//! use router_core::sglang::{Attempt, BootstrapAddress, Endpoint, Request, Rid, Room};
//!
//! let body = Bytes::from_static(br#"{"model":"m","messages":[],"top_p":0.90,"rid":"mine"}"#);
//! let request = Request::parse(Endpoint::Chat, body).unwrap();
//! let bootstrap = BootstrapAddress::new("10.0.0.7".parse().unwrap(), 8998);
//! let legs = request.inject(&Attempt {
//!     bootstrap: &bootstrap,
//!     rooms: &[Room::from_random(42)],
//!     rids: &[Rid::from_random(7)],
//!     dp: Default::default(),
//! });
//! assert_eq!(
//!     legs.decode.to_bytes(),
//!     concat!(
//!         r#"{"model":"m","messages":[],"top_p":0.90,"bootstrap_host":"10.0.0.7","#,
//!         r#""bootstrap_port":8998,"bootstrap_room":42,"#,
//!         r#""rid":"00000000000000000000000000000007"}"#,
//!     ),
//! );
//! ```

mod control;
mod endpoint;
pub mod fault;
#[cfg(test)]
mod garbage;
#[cfg(test)]
mod golden;
pub mod headers;
pub mod info;
mod invalid;
mod json;
pub mod kv_messages;
pub mod loads;
pub mod logprob;
pub mod merge;
mod one_engine;
mod prompt;
mod public_info;
pub mod ranks;
mod rendezvous;
mod request;
pub mod response;
mod samples;
mod splice;
pub mod sse;
pub mod usage;
pub mod versions;

pub use control::{AllowedFields, BodyType};
pub use endpoint::Endpoint;
pub use invalid::Invalid;
pub use json::MAX_DEPTH;
pub use one_engine::OneEngineRequest;
pub use rendezvous::{Attempt, BootstrapAddress, Rid, Room, ranks_by_field};
pub use request::{ContentHash, ContentKey, MAX_MEMBERS, Request};
pub use samples::{MAX_SAMPLES, MAX_SEQUENCES};
pub use splice::SplicedBody;
